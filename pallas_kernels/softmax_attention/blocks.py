"""Blocks of rows and of slots: their sizes, which of them see each other, and how to walk them.

Rows are the query axis of `xla.py`: q is [b, h, R, D] beside k, v [b, h, S, D].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import target

BLOCK_SCORES = 1 << 19  # scores of a block, 2 MiB: what the caches of a CPU hold
BLOCK_SLOTS = 256
MIN_BLOCK_ROWS = 128
# A GPU computes such a block in less time than it takes to start the dozen kernels for it.
GPU_SCORES, GPU_SLOTS = 32, 8  # times as many

NEVER = jnp.iinfo(jnp.int32).max


class Labels(NamedTuple):
    """What decides who sees whom: position and segment of each row or slot, [b, R] or [b, S]."""

    positions: jax.Array
    segments: jax.Array | None


class Blocks(NamedTuple):
    """Sizes of a block: batch rows (divides b), query rows, kv slots."""

    batch: int
    rows: int
    slots: int


def block_sizes(q: jax.Array, k: jax.Array) -> Blocks:
    (batch, heads, n_rows), n_slots = q.shape[:3], k.shape[2]
    scores, block_slots = most_scores(), BLOCK_SLOTS
    if target.platform() == "gpu":
        block_slots *= GPU_SLOTS
    slots = min(n_slots, block_slots)
    rows = min(n_rows, max(MIN_BLOCK_ROWS, scores // (heads * slots)))
    most = max(1, scores // (heads * rows * slots))
    return Blocks(max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most), rows, slots)


def most_scores() -> int:
    """Scores of a block, at the most."""
    return BLOCK_SCORES * (GPU_SCORES if target.platform() == "gpu" else 1)


def first_slot(block: jax.Array, k: jax.Array, blocks: Blocks) -> jax.Array:
    """The last block overlaps the one before it where the block size does not divide S."""
    return jnp.minimum(block * blocks.slots, k.shape[2] - blocks.slots)


def block_index(k, v, slots: Labels, blocks: Blocks) -> tuple[Callable, Callable]:
    """Two functions: the blocks of slots that a block of rows sees, and the arrays of one."""
    bounds = _block_bounds(slots, blocks.slots)

    def visible_blocks(batch, rows: Labels) -> tuple[jax.Array, jax.Array]:
        """Order that puts the visible blocks first, and their number."""
        first, lowest, highest = (
            jax.lax.dynamic_slice_in_dim(x, batch, blocks.batch) for x in bounds
        )
        _, rows_lowest, rows_highest = _block_bounds(rows, blocks.rows)
        visible = first <= rows.positions.max(1, keepdims=True)
        visible &= (lowest <= rows_highest) & (highest >= rows_lowest)
        visible = visible.any(0)
        return jnp.argsort(~visible), visible.sum()

    def slots_at(batch, block) -> tuple[jax.Array, jax.Array, Labels]:
        start = first_slot(block, k, blocks)
        k_block, v_block = (
            jax.lax.dynamic_slice(
                x, (batch, 0, start, 0), (blocks.batch, x.shape[1], blocks.slots, x.shape[3])
            )
            for x in (k, v)
        )
        labels = jax.tree.map(
            lambda x: jax.lax.dynamic_slice(x, (batch, start), (blocks.batch, blocks.slots)), slots
        )
        again = start + jnp.arange(blocks.slots) < block * blocks.slots
        return k_block, v_block, labels._replace(positions=jnp.where(again, -1, labels.positions))

    return visible_blocks, slots_at


def _block_bounds(labels: Labels, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """First position, lowest and highest segment of each block [b, n]; an empty one has none."""
    padding = -labels.positions.shape[1] % size

    def split(x: jax.Array, fill: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, padding)), constant_values=fill)
        return x.reshape(x.shape[0], -1, size)

    positions = split(labels.positions, -1)
    used = positions >= 0
    segments = jnp.zeros_like(used, jnp.int32)
    if labels.segments is not None:
        segments = split(labels.segments, 0)
    return (
        jnp.where(used, positions, NEVER).min(-1),
        jnp.where(used, segments, NEVER).min(-1),
        jnp.where(used, segments, -NEVER).max(-1),
    )


def scan_rows(body: Callable, carry, q, rows: Labels, per_row: tuple, blocks: Blocks):
    """Scans `body` over the grid of blocks of rows, with the first batch row of each."""
    n_row_blocks = -(-q.shape[2] // blocks.rows)
    batch = jnp.repeat(jnp.arange(0, q.shape[0], blocks.batch), n_row_blocks)
    labels = jax.tree.map(lambda x: to_grid(x[:, None], blocks, -1)[:, :, 0], rows)
    return jax.lax.scan(
        body, carry, (batch, to_grid(q, blocks), labels, *(to_grid(x, blocks) for x in per_row))
    )


def to_grid(x: jax.Array, blocks: Blocks, fill: int = 0) -> jax.Array:
    """[b, h, R, ...] -> [grid, batch, h, rows, ...], the last block of rows padded."""
    batch, heads, n_rows, *rest = x.shape
    padding = [(0, 0), (0, 0), (0, -n_rows % blocks.rows)] + [(0, 0)] * len(rest)
    x = jnp.pad(x, padding, constant_values=fill)
    x = x.reshape(batch // blocks.batch, blocks.batch, heads, -1, blocks.rows, *rest)
    return jnp.moveaxis(x, 3, 1).reshape(-1, blocks.batch, heads, blocks.rows, *rest)


def from_grid(x: jax.Array, like: jax.Array, blocks: Blocks) -> jax.Array:
    """The inverse of `to_grid`, for an array of the shape of `like`."""
    batch, heads, n_rows, *rest = like.shape
    x = x.reshape(batch // blocks.batch, -1, blocks.batch, heads, blocks.rows, *rest)
    return jnp.moveaxis(x, 1, 3).reshape(batch, heads, -1, *rest)[:, :, :n_rows]
