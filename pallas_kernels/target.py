"""The platform that a function is traced for, which need not be the one this process runs on."""

import jax


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of the current mesh's devices, or else of the default backend.

    A program may be compiled for devices that are not there; `jax.set_mesh` then has them.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
