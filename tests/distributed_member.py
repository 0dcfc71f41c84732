"""A process that joins a job by `mmrl.distributed` and does what its flags say."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrl import config as configs
from mmrl import distributed
from mmrl.training.interrupts import stop_requests

_THEN = flags.DEFINE_enum(
    "then", "end", ["end", "sleep", "sum", "stop"], "What to do after a first sum."
)
_VICTIM = flags.DEFINE_integer("victim", None, "The process that kills or fails itself.")
_FAILS = flags.DEFINE_boolean("fails", False, "The victim raises an error; no SIGKILL.")


def total(mesh: Mesh) -> float:
    """The sum of 1, 2, … over all devices of all processes, by one compiled collective."""
    sharding = NamedSharding(mesh, PartitionSpec("all"))
    values = np.arange(1.0, mesh.size + 1)
    array = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "all"),
        mesh=mesh,
        in_specs=PartitionSpec("all"),
        out_specs=PartitionSpec(),
    )
    return float(jax.jit(summed)(array).addressable_data(0)[0])


def main(argv: list[str]) -> None:
    with distributed.job():
        take_part()


def take_part() -> None:
    jax.config.update("jax_platforms", "cpu")
    mesh = Mesh(np.array(jax.devices()), "all")
    print(
        f"member {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices, sum {total(mesh):g}",
        flush=True,
    )
    if _VICTIM.value == jax.process_index():
        time.sleep(0.5)
        if _FAILS.value:
            raise RuntimeError("the victim's own error")
        os.kill(os.getpid(), signal.SIGKILL)
    if _THEN.value == "stop":
        with stop_requests() as stop:
            print("ready", flush=True)
            print("asked to stop" if stop.wait(60) else "never asked", flush=True)
        return
    while _THEN.value != "end":
        jnp.zeros(()).block_until_ready()
        time.sleep(0.05)
        if _THEN.value == "sum":
            total(mesh)


if __name__ == "__main__":
    configs.run(main)
