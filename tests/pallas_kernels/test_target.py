"""What a function is traced for is decided by the mesh, not by the machine."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import target


@pytest.mark.parametrize("platform, name", [("tpu", "tpu"), ("cuda", "gpu"), ("cpu", "cpu")])
def test_the_platform_is_that_of_the_meshs_devices(platform, name):
    device = AbstractDevice("a chip", None, platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("x",), abstract_device=device)):
        assert target.platform() == name


def test_without_a_mesh_it_is_the_default_backend():
    assert target.platform() == jax.default_backend() == "cpu"
