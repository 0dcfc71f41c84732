"""How lightning attention is cut up for a TPU: lane groups, chunks, grid steps, decay distances.

A vector register has 128 lanes, so heads are laid side by side, [B, T, H, D] as [B, T, H * D]: a
plain reshape, and none at all next to the projection that made the array. 128 lanes are a *lane
group*: one head of D = 128, two of 64, four of 32. Other widths are padded with zeros to the next
of these. The states of a group's heads are the diagonal blocks of one [128, 128] matrix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

LANES = 128
_STEP_GROUPS = 8  # independent chains of products that the compiler can interleave
_STEP_BYTES = 4 << 20  # of one grid step's tokens; there are two buffers, and 16 MiB in v5p


class Tiling(NamedTuple):
    """Sizes of one call; a grid step works on a block of tokens of `step_groups` lane groups."""

    dim: int  # lanes a head, a divisor of 128
    groups: int  # lane groups in all
    step_groups: int
    chunk: int  # tokens that meet in one matrix product
    length: int  # tokens with padding, whole chunks
    itemsize: int  # bytes of an element

    @property
    def heads(self) -> int:
        """Heads with padding."""
        return self.groups * LANES // self.dim

    def block(self, operands: int) -> int:
        """Tokens of a grid step, whole chunks, for a kernel that moves so many q-like arrays."""
        chunk_bytes = operands * self.step_groups * LANES * self.chunk * self.itemsize
        return self.chunk * _divisor(self.length // self.chunk, max(1, _STEP_BYTES // chunk_bytes))


def tiling(shape: tuple[int, ...], dtype: jnp.dtype) -> Tiling:
    """Tiling of q, k, v of `shape` [B, T, H, D].

    Chunks fill the matrix unit (128 tokens, 256 from v6e on) unless T is shorter. Several chunks
    and lane groups share a grid step, so that its fixed cost is spread and one group's latency is
    another's work; but there are at least two steps to share out between two TensorCores.
    """
    batch, length, heads, dim = shape
    dim = max(8, 1 << (dim - 1).bit_length())
    groups = math.ceil(heads * dim / LANES)
    parallel_steps = 1 if batch > 1 or groups == 1 else 2
    step_groups = _divisor(groups, min(_STEP_GROUPS, groups // parallel_steps))
    chunk = min(_matrix_unit(), 16 * math.ceil(length / 16))
    length = chunk * math.ceil(length / chunk)
    return Tiling(dim, groups, step_groups, chunk, length, dtype.itemsize)


def _divisor(number: int, limit: int) -> int:
    return next(d for d in range(limit, 0, -1) if number % d == 0)


def _matrix_unit() -> int:
    return pltpu.get_tpu_info().mxu_column_size if pltpu.is_tpu_device() else 128


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    """The type of a result like x; in a shard_map it varies over the mesh axes that x does."""
    varying = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying)


def fold(x: jax.Array, tiles: Tiling) -> jax.Array:
    """[B, T, H, D] to [B, length, groups * 128], padded with zeros."""
    batch, length, heads, dim = x.shape
    pads = (tiles.length - length, tiles.heads - heads, tiles.dim - dim)
    x = jnp.pad(x, ((0, 0), *((0, pad) for pad in pads)))
    return x.reshape(batch, tiles.length, tiles.groups * LANES)


def unfold(x: jax.Array, shape: tuple[int, ...], tiles: Tiling) -> jax.Array:
    """Undoes `fold`; `shape` is [B, T, H, D]."""
    batch, length, heads, dim = shape
    x = x.reshape(batch, tiles.length, tiles.heads, tiles.dim)
    return x[:, :length, :heads, :dim]


def fold_state(state: jax.Array, tiles: Tiling) -> jax.Array:
    """[B, H, D, D] to [B, groups, 128, 128] with the heads of a group as diagonal blocks."""
    batch, heads, dim, _ = state.shape
    pad = (0, tiles.dim - dim)
    state = jnp.pad(state, ((0, 0), (0, tiles.heads - heads), pad, pad))
    if tiles.dim == LANES:
        return state
    share = LANES // tiles.dim
    state = state.reshape(batch, tiles.groups, share, tiles.dim, 1, tiles.dim)
    diagonal = jnp.eye(share, dtype=bool)[:, None, :, None]
    return jnp.where(diagonal, state, 0).reshape(batch, tiles.groups, LANES, LANES)


def unfold_state(state: jax.Array, shape: tuple[int, ...], tiles: Tiling) -> jax.Array:
    """Undoes `fold_state`; `shape` is [B, T, H, D]."""
    batch, _, heads, dim = shape
    if tiles.dim == LANES:
        return state[:, :heads, :dim, :dim]
    share = LANES // tiles.dim
    state = state.reshape(batch, tiles.groups, share, tiles.dim, share, tiles.dim)
    state = jnp.diagonal(state, axis1=2, axis2=4)  # [B, groups, dim, dim, share]
    state = jnp.moveaxis(state, -1, 2).reshape(batch, tiles.heads, tiles.dim, tiles.dim)
    return state[:, :heads, :dim, :dim]


def fold_rates(slopes: jax.Array, tiles: Tiling) -> tuple[jax.Array, jax.Array]:
    """Base-2 decay exponents a token, a head [heads] and a lane [1, groups * 128].

    They stay below zero, so that an infinite distance is a weight of zero.
    """
    rates = -jnp.maximum(slopes.astype(jnp.float32), 1e-30) * math.log2(math.e)
    rates = jnp.pad(rates, (0, tiles.heads - slopes.size), constant_values=-1)
    return rates, jnp.repeat(rates, tiles.dim)[None]


def positions(segment_ids: jax.Array | None, shape: tuple[int, ...], tiles: Tiling) -> jax.Array:
    """float32 [B, 2, length]: valid tokens, and changes of segment, since the chunk's start.

    Both count the token itself. `shape` is [B, T, H, D]; what pads it to length is invalid.
    """
    batch, length = shape[:2]
    time = lax.broadcasted_iota(jnp.int32, (batch, tiles.length), 1)
    if segment_ids is None:
        start = time - time % tiles.chunk
        age = jnp.minimum(time + 1, length) - jnp.minimum(start, length)
        return jnp.stack([age, jnp.zeros_like(age)], axis=1).astype(jnp.float32)
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, tiles.length - length)))
    valid = segment_ids != 0
    latest = lax.cummax(jnp.where(valid, time, -1), axis=1)
    previous = jnp.pad(latest, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    previous_id = jnp.take_along_axis(segment_ids, jnp.maximum(previous, 0), axis=1)
    change = valid & (previous >= 0) & (previous_id != segment_ids)
    counts = jnp.stack([valid, change], axis=1).reshape(batch, 2, -1, tiles.chunk)
    return jnp.cumsum(counts, axis=3, dtype=jnp.float32).reshape(batch, 2, tiles.length)


class Distances(NamedTuple):
    """Tokens of decay in a chunk of C; infinite where nothing is passed on."""

    intra: jax.Array  # [C, C], from token j to token i; transposed, from token i to token j
    read: jax.Array  # [C, 128], from the chunk's start to the token, the same in all lanes
    write: jax.Array  # [C, 128], from the token to the chunk's end
    whole: jax.Array  # [1, 128], from start to end


def distances(position: jax.Array, transpose: bool = False) -> Distances:
    """The distances of one chunk from its `positions` [2, C]."""
    size = position.shape[1]
    age, run = position[0:1], position[1:2]
    column = position.T
    age_column, run_column = (
        jnp.broadcast_to(x, (size, LANES)) for x in (column[:, 0:1], column[:, 1:2])
    )
    row = lax.broadcasted_iota(jnp.int32, (size, size), 0)
    lane = lax.broadcasted_iota(jnp.int32, (size, size), 1)
    causal = lane >= row if transpose else row >= lane
    ahead = age - column[:, 0:1] if transpose else column[:, 0:1] - age
    read = jnp.where(run_column == 0, age_column, jnp.inf)
    write = jnp.where(run_column == run_column[-1:], age_column[-1:] - age_column, jnp.inf)
    intra = jnp.where(causal & (run == column[:, 1:2]), ahead, jnp.inf)
    return Distances(intra, read, write, read[-1:])


def decay_change(rate: jax.Array, distance: jax.Array) -> jax.Array:
    """2^(rate * distance) - 1 without cancellation: near 1, a factor's rounding would add up."""
    exponent = rate * distance
    x = exponent * math.log(2)
    series = jnp.ones_like(x)
    for order in range(7, 1, -1):
        series = 1 + x * series / order
    return jnp.where(x > -0.3, x * series, jnp.exp2(exponent) - 1)
