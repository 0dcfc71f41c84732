"""The bodies of the Triton kernels of lightning attention: what one program does.

`triton.py` launches them. References to tokens are [T, width] of one row and head, width a power of
two >= D; those to states are [width, columns], held in pieces of rows; gap t of `count` and `run`
is before token t (see `xla.Positions`). Loads beyond T or D, and of padding, give 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.lightning_attention.parts import parts


class Layout(NamedTuple):
    """How a sequence is cut; grid = (width / columns, splits, heads, rows)."""

    length: int  # T
    dim: int  # D
    width: int  # D, or the next power of two that a product can have
    chunk: int  # tokens that meet in one product
    piece: int  # of the width, that one product sums over
    columns: int  # of v, in one program
    splits: int
    chunks: int  # in a split
    reverse: bool  # from the last token to the first
    exact: bool  # bfloat16 tokens meet scores and states that keep float32's digits
    interpret: bool


class _Chunk(NamedTuple):
    """Decay weights of a chunk, as `xla._Decay`, and which of its tokens are valid."""

    start: jax.Array
    valid: jax.Array  # [C]
    intra: jax.Array  # [C, C]
    read: jax.Array  # [C, 1]
    write: jax.Array  # [C, 1]
    change: jax.Array  # of the incoming state in the outgoing one, less 1


def _chunk(layout: Layout, split, index, rate, gap_refs) -> _Chunk:
    """The split's chunk that comes `index`-th, in the direction of its run."""
    index = layout.chunks - 1 - index if layout.reverse else index
    start = (split * layout.chunks + index) * layout.chunk
    tokens = jnp.arange(layout.chunk)

    def gap(offset):
        where = jnp.minimum(start + offset, layout.length)
        return tuple(ref[where] for ref in gap_refs) or (where, jnp.zeros_like(where))

    (before, run_before), (after, run_after) = gap(0), gap(layout.chunk)
    (left, _), (count, run) = gap(tokens), gap(tokens + 1)
    earlier = tokens[:, None] >= tokens[None, :]
    if layout.reverse:
        earlier = tokens[:, None] <= tokens[None, :]
    linked = earlier & (run[:, None] == run[None, :])
    intra = jnp.where(linked, jnp.exp(rate * jnp.abs(count[:, None] - count[None, :])), 0)
    read = jnp.where(run == run_before, jnp.exp(rate * (count - before)), 0)
    write = jnp.where(run == run_after, jnp.exp(rate * (after - count)), 0)
    change = jnp.where(run_before == run_after, jnp.expm1(rate * (after - before)), -1)
    if layout.reverse:
        read, write = write, read
    return _Chunk(start, count > left, intra, read[:, None], write[:, None], change)


class _Columns(NamedTuple):
    """Columns of a [T, width] array that are loaded together."""

    where: slice | pl.Slice
    inside: jax.Array  # which of them are within D


def _pieces(layout: Layout) -> list[_Columns]:
    """All columns of q or k, piece by piece; they are also the rows of a state."""
    starts = range(0, layout.width, layout.piece)
    return [
        _Columns(pl.ds(start, layout.piece), _inside(layout, start, layout.piece))
        for start in starts
    ]


def _block(layout: Layout) -> _Columns:
    """The columns of this program's block of v."""
    first = pl.program_id(0) * layout.columns
    return _Columns(pl.ds(0, layout.columns), _inside(layout, first, layout.columns))


def _inside(layout: Layout, start, size: int) -> jax.Array:
    if layout.dim == layout.width:  # a constant, which the masks do not keep registers for
        return jnp.full(size, True, bool)
    return start + jnp.arange(size) < layout.dim


def _load(ref, chunk: _Chunk, columns: _Columns) -> jax.Array:
    mask = chunk.valid[:, None] & columns.inside[None, :]
    rows = pl.ds(chunk.start, len(chunk.valid))
    return plgpu.load(ref.at[rows, columns.where], mask=mask, other=0)


def _dot(layout: Layout, a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of a and b over the given axes, in float32."""
    precision: lax.PrecisionLike = None
    if a.dtype == jnp.float32:
        exact = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        precision = lax.Precision.HIGHEST if layout.interpret else exact
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _updated(layout: Layout, state, k, v, chunk: _Chunk) -> jax.Array:
    state += chunk.change * state
    for written in parts(chunk.write * v.astype(jnp.float32), v.dtype, layout.exact):
        state += _dot(layout, k, written, (0, 0))
    return state


def states(slope_ref, *refs, layout: Layout) -> None:
    """The state that the split's tokens leave behind, from none before them."""
    *gap_refs, k_ref, v_ref, state_ref = refs
    split, rate, block = pl.program_id(1), -slope_ref[0], _block(layout)
    pieces = _pieces(layout)

    def step(index, state):
        chunk = _chunk(layout, split, index, rate, gap_refs)
        v = _load(v_ref, chunk, block)
        keys = [_load(k_ref, chunk, piece) for piece in pieces]
        return [_updated(layout, part, k, v, chunk) for part, k in zip(state, keys)]

    state = [jnp.zeros((layout.piece, layout.columns), jnp.float32) for _ in pieces]
    state = lax.fori_loop(0, layout.chunks, step, state)
    _store(state_ref, state, pieces, block)


def outputs(slope_ref, *refs, layout: Layout) -> None:
    """out = (W * (q k^T)) v + read * (q S) chunk by chunk, and the state after the last split."""
    *gap_refs, q_ref, k_ref, v_ref, entering_ref, out_ref, last_ref = refs
    split, rate, block = pl.program_id(1), -slope_ref[0], _block(layout)
    pieces = _pieces(layout)

    def step(index, state):
        chunk = _chunk(layout, split, index, rate, gap_refs)
        scores, out = 0, 0
        for piece, part in zip(pieces, state):
            q, k = (_load(ref, chunk, piece) for ref in (q_ref, k_ref))
            scores += _dot(layout, q, k, (1, 1))
            out += sum(_dot(layout, q, s, (1, 0)) for s in parts(part, q.dtype, layout.exact))
        v = _load(v_ref, chunk, block)
        out *= chunk.read
        for part in parts(chunk.intra * scores, v.dtype, layout.exact):
            out += _dot(layout, part, v, (1, 0))
        rows = chunk.start + jnp.arange(layout.chunk) < layout.length
        where = out_ref.at[pl.ds(chunk.start, layout.chunk), :]
        mask = rows[:, None] & block.inside[None, :]
        plgpu.store(where, out.astype(out_ref.dtype), mask=mask)
        keys = [_load(k_ref, chunk, piece) for piece in pieces]
        return [_updated(layout, part, k, v, chunk) for part, k in zip(state, keys)]

    state = [
        plgpu.load(entering_ref.at[piece.where, :], mask=_square(piece, block), other=0)
        for piece in pieces
    ]
    state = lax.fori_loop(0, layout.chunks, step, state)

    @pl.when(split == (0 if layout.reverse else layout.splits - 1))
    def _():
        _store(last_ref, state, pieces, block)


def _store(ref, state: list[jax.Array], pieces: list[_Columns], block: _Columns) -> None:
    for piece, part in zip(pieces, state):
        plgpu.store(ref.at[piece.where, :], part, mask=_square(piece, block))


def _square(piece: _Columns, block: _Columns) -> jax.Array:
    return piece.inside[:, None] & block.inside[None, :]


def one_token(slope_ref, *refs, layout: Layout) -> None:
    """S += change * S + k^T v in place, and out = q S, for the one token of a row."""
    *segment_refs, q_ref, k_ref, v_ref, state_ref, out_ref, new_ref = refs
    valid = segment_refs[0][0] != 0 if segment_refs else True
    every, block = _inside(layout, 0, layout.width), _block(layout).inside
    q, k = (plgpu.load(ref.at[:], mask=valid & every, other=0) for ref in (q_ref, k_ref))
    v = plgpu.load(v_ref.at[:], mask=valid & block, other=0)
    mask = every[:, None] & block[None, :]
    state = plgpu.load(state_ref.at[:, :], mask=mask, other=0)
    change = jnp.where(valid, jnp.expm1(-slope_ref[0]), 0)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    state += change * state + k[:, None] * v[None, :]
    plgpu.store(new_ref.at[:, :], state, mask=mask)
    out = jnp.sum(q[:, None] * state, axis=0)
    plgpu.store(out_ref.at[:], out.astype(out_ref.dtype), mask=block)
