"""Where arrays live: one table maps the logical axes of parameters and activations to mesh axes.

Parameters name their axes when they are created (`axes=("embed", "heads", "head_dim")`),
activations where they are constrained; this file alone knows the mesh.
"""

import math
from dataclasses import dataclass, fields

import jax
from absl import logging
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

# Logical axis -> mesh axes. An axis that is missing here is a mistake and raises.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "time": "sequence",
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "hidden": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "expert": "expert",
    "norm": None,
}


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 on one of them takes all the devices that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = [getattr(self, f.name) for f in fields(self)]
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"mesh sizes must be positive, one of them may be -1; got {sizes}")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given; ValueError where the sizes do not multiply."""
    devices = jax.devices() if devices is None else devices
    sizes = {f.name: getattr(config, f.name) for f in fields(config)}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {
        name: max(len(devices) // known, 1) if size == -1 else size for name, size in sizes.items()
    }
    if math.prod(sizes.values()) != len(devices):
        wanted = " × ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"mesh {wanted} needs {math.prod(sizes.values())} devices but {len(devices)} are "
            "there; change config.mesh so that the product is equal, or set one axis to -1"
        )
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh) -> PartitionSpec:
    """The partition of an array with these logical axes.

    A mesh axis shards at most one dimension: the first that asks for it. A dimension that the mesh
    axes do not divide stays whole, and a line in the log says so.
    Raises ValueError for an unknown logical axis or a wrong number of axes.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not fit shape {shape}")
    used: set[str] = set()
    parts = []
    for axis, size in zip(axes, shape):
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}; RULES has {sorted(RULES)}")
        rule = RULES[axis] if axis else None
        names = (rule,) if isinstance(rule, str) else (rule or ())
        names = tuple(n for n in names if n not in used and mesh.shape[n] > 1)
        if names and size % math.prod(mesh.shape[n] for n in names):
            logging.log_first_n(
                logging.WARNING, "axis %s of size %d stays whole on %s", 8, axis, size, names
            )
            names = ()
        used.update(names)
        parts.append(names if names else None)
    return PartitionSpec(*parts)


def shardings(tree, mesh: Mesh):
    """NamedShardings for a tree of nnx Variables that carry `axes`; anything else is replicated."""

    def one(leaf):
        axes = leaf.get_metadata().get("axes") if isinstance(leaf, nnx.Variable) else None
        if axes is None:
            return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), leaf)
        return leaf.replace(NamedSharding(mesh, spec(axes, leaf.get_value().shape, mesh)))

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def placement(tree, mesh: Mesh | None):
    """As `shardings`; without a mesh every Variable goes to the first device."""
    if mesh is not None:
        return shardings(tree, mesh)
    device = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: leaf.replace(device), tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )


def batch_shardings(tree, mesh: Mesh):
    """NamedShardings that split the leading dimension of every array over the batch axes."""
    return jax.tree.map(
        lambda x: NamedSharding(mesh, spec(("batch",) + (None,) * (x.ndim - 1), x.shape, mesh)),
        tree,
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the current mesh, if `jax.set_mesh` gave one, by its logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))
