"""Where arrays live: one table maps the logical axes of parameters and activations to mesh axes.

The table has two columns, `LAYOUTS`: one for training, one for the sampler, on the same mesh.
Parameters name their axes when they are created (`axes=("embed", "heads", "head_dim")`),
activations where they are constrained; this file alone knows the mesh.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

Axes = tuple[str | None, ...]  # the logical axes of an array's dimensions

Layout = Literal["train", "decode"]
Rules = Mapping[str, tuple[str, ...]]

# Logical axis -> mesh axes, first those of parameters, then those of activations. An axis that is
# missing here is a mistake and raises.
TRAIN: Rules = {
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "expert": ("expert",),
    "norm": (),
    "batch": ("data", "fsdp", "expert"),  # rows of a cache, and what mixes the tokens of a row
    "prompts": ("data", "fsdp", "expert"),  # rows of a cache that several others continue
    "rows": ("data", "fsdp", "expert"),  # rows elsewhere
    "time": ("sequence",),
    "hidden": ("tensor",),  # between layers: what is kept for the backward pass
    "activation_heads": ("tensor",),
    "activation_kv_heads": ("tensor",),
}
# A token read against all weights: these stay where they are, cut over `fsdp` as over `tensor`, and
# the few activations go to them. A cache is cut by rows over all axes but `tensor`.
DECODE: Rules = {
    **TRAIN,
    "vocab": ("tensor", "fsdp"),
    "embed": (),
    "heads": ("tensor", "fsdp"),
    "kv_heads": ("tensor", "fsdp"),
    "mlp": ("tensor", "fsdp"),
    "batch": ("data", "expert", "sequence", "fsdp"),
    "prompts": ("data", "expert", "sequence", "fsdp"),
    "rows": ("data", "expert", "sequence"),
    "time": (),
    "hidden": (),
}
LAYOUTS: Mapping[Layout, Rules] = {"train": TRAIN, "decode": DECODE}

_layout: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout", default="train")


@contextlib.contextmanager
def layout(name: Layout) -> Iterator[None]:
    """Traces what is within by the rules of this layout. A jitted function needs it as a static."""
    token = _layout.set(name)
    try:
        yield
    finally:
        _layout.reset(token)


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


def resolve(config: MeshConfig, devices: int) -> MeshConfig:
    """All sizes of a mesh of so many devices; ValueError where they do not multiply to it."""
    sizes = {f.name: getattr(config, f.name) for f in fields(config)}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: max(devices // known, 1) if n == -1 else n for name, n in sizes.items()}
    if math.prod(sizes.values()) != devices:
        wanted = " × ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"mesh {wanted} needs {math.prod(sizes.values())} devices but {devices} are "
            "there; change config.mesh so that the product is equal, or set one axis to -1"
        )
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given; ValueError where the sizes do not multiply."""
    devices = jax.devices() if devices is None else devices
    sizes = asdict(resolve(config, len(devices)))
    # A mesh axis may be a part of an axis of a TPU's torus, which `jax.make_mesh` does not allow.
    grid = create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def split_mesh(
    config: MeshConfig, rest: MeshConfig, devices: list[jax.Device]
) -> tuple[Mesh, Mesh]:
    """Two meshes that share no device: `rest`, all sizes given, has the last, `config` the others.

    Raises ValueError where there are too few, or the sizes of `config` do not multiply.
    """
    count = math.prod(asdict(rest).values())
    if count >= len(devices):
        raise ValueError(
            f"off_policy.rollout_mesh takes {count} of {len(devices)} devices, which leaves none "
            "for config.mesh; make it smaller or leave it out"
        )
    first, last = devices[:-count], devices[-count:]
    return make_mesh(config, first), make_mesh(rest, last)


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh) -> PartitionSpec:
    """The partition of an array with these logical axes.

    A mesh axis shards at most one dimension: the first that asks for it. A dimension is cut over as
    many of its rule's mesh axes, from the first on, as divide it; a line in the log names the rest.
    Raises ValueError for an unknown logical axis or a wrong number of axes.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not fit shape {shape}")
    used: set[str] = set()
    parts = []
    for axis, size in zip(axes, shape):
        names = _mesh_axes(axis, (size,), mesh, used)
        used.update(names)
        parts.append(names if names else None)
    return PartitionSpec(*parts)


def _mesh_axes(
    axis: str | None, sizes: Sequence[int], mesh, used: Container[str] = ()
) -> tuple[str, ...]:
    """The mesh axes that cut a logical axis: the first of its rule, as many as divide all sizes."""
    if axis is None:
        return ()
    rules = LAYOUTS[_layout.get()]
    if axis not in rules:
        raise ValueError(f"unknown logical axis {axis!r}; the rules have {sorted(rules)}")
    asked = tuple(n for n in rules[axis] if mesh.shape[n] > 1 and n not in used)
    for end in range(len(asked), 0, -1):
        count = math.prod(mesh.shape[n] for n in asked[:end])
        if not any(size % count for size in sizes):
            break
    else:
        end = 0
    if end < len(asked) and max(sizes) > 1:
        message = "axis %s of size %d is not cut over %s"
        logging.log_first_n(logging.WARNING, message, 8, axis, max(sizes), asked[end:])
    return asked[:end]


def parts(axis: str, size: int, mesh) -> int:
    """Over how many devices the current layout cuts a logical axis of an array."""
    return math.prod(mesh.shape[name] for name in _mesh_axes(axis, (size,), mesh))


def uncut(axis: str, size: int, mesh) -> tuple[str, ...]:
    """The mesh axes that the current layout would cut a logical axis over, and does not divide."""
    asked = tuple(name for name in LAYOUTS[_layout.get()][axis] if mesh.shape[name] > 1)
    return asked[len(_mesh_axes(axis, (size,), mesh)) :]


def row_groups(rows: int) -> int:
    """In how many equal parts the current mesh holds so many rows, each on devices of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else parts("rows", rows, mesh)


def cache_groups(prompts: int) -> int:
    """As `row_groups`, of the rows of a cache: parts that hold the prompts which they continue.

    1 where the mesh has more devices for rows than there are prompts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or uncut("prompts", prompts, mesh) else parts("prompts", prompts, mesh)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """A mesh of these sizes, all positive, without devices."""
    sizes = asdict(config)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def per_device(
    function: Callable[..., Any],
    arguments: Sequence[jax.Array | None],
    in_axes: Sequence[Axes],
    out_axes: Any,
) -> Any:
    """`function(names, *arguments)` on each device's own part of the arrays.

    `in_axes` has the logical axes of each argument, `out_axes` those of each result. `names` gives
    the mesh axes over which each logical axis is cut, for the collectives that the function needs:
    `names["time"] == ("sequence",)`. A logical axis is cut in all arrays that have it or in none.
    Without a mesh, or on one device, the arrays are whole and all of `names` empty.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes: dict[str, list[int]] = {}
    for array, axes in zip(arguments, in_axes, strict=True):
        for axis, size in zip(axes, () if array is None else array.shape):
            sizes.setdefault(axis or "", []).append(size)
    sizes.pop("", None)
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function(dict.fromkeys(sizes, ()), *arguments)
    names = {axis: _mesh_axes(axis, found, mesh) for axis, found in sizes.items()}

    def part(axes: Axes) -> PartitionSpec:
        return PartitionSpec(*(names.get(axis or "") or None for axis in axes))

    in_specs = tuple(part(axes) for axes in in_axes)
    out_specs = jax.tree.map(part, out_axes, is_leaf=_is_axes)
    return jax.shard_map(
        functools.partial(function, names),
        in_specs=in_specs,
        out_specs=out_specs,
        # Kernels say nothing of how their results vary over the mesh.
        check_vma=False,
    )(*arguments)


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(axis is None or isinstance(axis, str) for axis in x)


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


@functools.partial(jax.jit, static_argnames="places", donate_argnames="arrays")
def move(arrays: list[jax.Array], places: tuple[NamedSharding, ...]) -> list[jax.Array]:
    """The arrays, which are donated, where `places` have them."""
    return jax.lax.with_sharding_constraint(arrays, list(places))


def misplaced(arrays: Sequence[Any], places: Sequence[NamedSharding]) -> list[int]:
    """Which of the arrays lie elsewhere than at their places."""
    return [
        i
        for i, (x, place) in enumerate(zip(arrays, places, strict=True))
        if not x.sharding.is_equivalent_to(place, x.ndim)
    ]


def reshard(tree, name: Layout, mesh: Mesh):
    """The Variables of `tree` moved to where a layout has them; `tree` is donated.

    One program without computation, from device to device. What lies right already is not touched.
    """
    with layout(name):
        places = shardings(tree, mesh)
    leaves, structure = jax.tree.flatten(tree)
    targets = jax.tree.leaves(places)
    moving = misplaced(leaves, targets)
    if moving:
        moved = move([leaves[i] for i in moving], tuple(targets[i] for i in moving))
        for i, x in zip(moving, moved, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, leaves)


def batch_shardings(tree, mesh: Mesh):
    """NamedShardings that split the leading dimension of every array over the batch axes."""
    return jax.tree.map(
        lambda x: NamedSharding(mesh, spec(("batch",) + (None,) * (x.ndim - 1), x.shape, mesh)),
        tree,
    )


def cache_shards(name: Layout, kv_heads: int, mesh: AbstractMesh | None = None) -> tuple[int, int]:
    """Over how many devices of a mesh, by default the current, a layout cuts a cache: rows, heads.

    As many rows as there are devices for them are taken to be there.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        return 1, 1
    rows = math.prod(mesh.shape[axis] for axis in LAYOUTS[name]["batch"])
    with layout(name):
        return rows, parts("activation_kv_heads", kv_heads, mesh)


def by_process() -> NamedSharding:
    """The leading dimension over the processes; each device of a process has its whole part."""
    order = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    devices = np.asarray(order).reshape(jax.process_count(), -1)
    return NamedSharding(Mesh(devices, ("process", "local")), PartitionSpec("process"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the current mesh, if `jax.set_mesh` gave one, by its logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))
