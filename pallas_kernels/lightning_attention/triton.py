"""Lightning attention for NVIDIA GPUs, in Pallas kernels that Triton compiles (H100: `wgmma`).

Time is cut into splits so that one long sequence fills the GPU, and each split into chunks:

    1. state kernel, one program per split: the state that the split's own tokens leave behind;
    2. XLA combines the splits' states, weighted by the decay between them: the state entering each;
    3. output kernel, one program per split and block of columns of v: chunk by chunk, the outputs
       and the state, which stays in registers in float32.

The gradients are three more runs of the output kernel with the roles of the arrays exchanged, as
`xla.py` derives them; the states that enter the splits are those of (k, v) forwards for dq, and
those of (q, dout) backwards in time for dk and dv, transposed where the roles are. No chunk's state
is stored. Products take operands of the dtype of q, k, v: scores and states meet bfloat16 tokens in
two parts in the forward pass, so that a training pass gives what decoding gives (`one_token`, in
float32), and rounded in the gradients. float32 operands take three TF32 products each, over pieces
of D, in smaller blocks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.lightning_attention import triton_kernels
from pallas_kernels.lightning_attention.triton_kernels import Layout
from pallas_kernels.lightning_attention.xla import Positions, segment_positions

_PROGRAMS = 2 * 132  # two to each of an H100's multiprocessors
_SHORTEST_SPLIT = 512  # tokens: below, moving the states costs more than the split gains


class Blocks(NamedTuple):
    """What one program works on at a time, so much that ptxas spills no register."""

    chunk: int  # tokens
    piece: int  # of the width, that one product sums over
    columns: int  # of v, and so of the state
    warps: int
    stages: int

    @classmethod
    def of(cls, dtype, dim: int, segments: bool = False) -> "Blocks":
        """In bfloat16 the 64 rows of one wgmma; the parts of float32 need many registers.

        Of the pieces without spills, where D is padded, those of 64: each masks its loads. With
        segments two stages spill, and three do not; without, three leave room for one block.
        """
        if dtype == jnp.float32:
            piece = 32 if dim == _width(dim) else 64
            return cls(chunk=16, piece=piece, columns=16, warps=4, stages=1)
        return cls(chunk=64, piece=64, columns=32, warps=4, stages=3 if segments else 2)


def unsupported(q: jax.Array) -> str | None:
    """Why these kernels cannot take q [B, T, H, D], or None if they can."""
    if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"takes float32, bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] > 128:
        return f"takes a head_dim of at most 128, not {q.shape[-1]}"
    return None


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    initial_state: jax.Array,
    segment_ids: jax.Array | None,
    *,
    splits: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Block form of the recurrence of `reference.lightning_attention`: same arguments and results.

    A single token takes the recurrence itself, and its state is updated in place where the caller
    donates it. `splits` is the number of splits of the sequence, by default enough to fill an H100.
    `interpret` runs the kernels on any platform. The slopes have no gradient.

    Raises ValueError for what `unsupported` names.

    Sources: Lightning Attention-2 (arXiv 2401.04658), algorithms 1 and 2; the split over the
    sequence follows FlashLinearAttention (Yang et al., arXiv 2312.06635, section 3.3).
    """
    if reason := unsupported(q):
        raise ValueError(f"lightning_attention: triton {reason}; use implementation='xla'")
    if splits is None:
        splits = number_of_splits(q.shape, q.dtype)
    slopes = slopes.astype(jnp.float32)
    return _attention(splits, interpret, q, k, v, slopes, initial_state, segment_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(splits, interpret, q, k, v, slopes, state, segment_ids):
    if q.shape[1] == 1:
        return _one_token(interpret, q, k, v, slopes, state, segment_ids)
    layout = _layout(q.shape, q.dtype, splits, interpret)._replace(exact=True)
    run = _Run(layout, slopes, segment_positions(segment_ids))
    return _outputs(run, q, k, v, _entering(run, k, v, state))


def _forward(splits, interpret, *inputs):
    return _attention(splits, interpret, *inputs), inputs


def _backward(splits, interpret, inputs, cotangents):
    q, k, v, slopes, state, segment_ids = inputs
    dout, dstate = cotangents
    forwards = _Run(
        _layout(q.shape, q.dtype, splits, interpret), slopes, segment_positions(segment_ids)
    )
    dq, _ = _outputs(forwards, dout, v, k, _entering(forwards, k, v, state).mT)
    backwards = forwards._replace(layout=forwards.layout._replace(reverse=True))
    dstates = _entering(backwards, q, dout, dstate)
    dk, _ = _outputs(backwards, v, dout, q, dstates.mT)
    dv, dstate = _outputs(backwards, k, q, dout, dstates)
    return dq, dk, dv, None, dstate, None


_attention.defvjp(_forward, _backward)


class _Run(NamedTuple):
    """One direction over the sequences: how they are cut, how they decay, where segments change."""

    layout: Layout
    slopes: jax.Array
    positions: Positions | None


def number_of_splits(shape: tuple[int, ...], dtype) -> int:
    """Splits of q [B, T, H, D] that fill a GPU."""
    batch, length, heads, dim = shape
    programs = batch * heads * pl.cdiv(_width(dim), Blocks.of(dtype, dim).columns)
    return max(1, min(round(_PROGRAMS / programs), length // _SHORTEST_SPLIT))


def _width(dim: int) -> int:
    return max(16, pl.next_power_of_2(dim))


def _layout(shape: tuple[int, ...], dtype, splits: int, interpret: bool) -> Layout:
    _, length, _, dim = shape
    width, blocks = _width(dim), Blocks.of(dtype, dim)
    chunks = pl.cdiv(pl.cdiv(length, splits), blocks.chunk)
    return Layout(
        length=length,
        dim=dim,
        width=width,
        chunk=blocks.chunk,
        piece=min(blocks.piece, width),
        columns=min(blocks.columns, width),
        splits=pl.cdiv(length, chunks * blocks.chunk),
        chunks=chunks,
        reverse=False,
        exact=False,
        interpret=interpret,
    )


def _outputs(run: _Run, q, k, v, entering):
    """out [B, T, H, D] and the last state [B, H, D, D], from the states entering the splits."""
    everything, block = _token_specs(run.layout)
    state = pl.BlockSpec(_state_block(run.layout), lambda e, s, h, b: (b, h, 0, e))
    shape = (*entering.shape[:2], *entering.shape[3:])
    return _call(
        triton_kernels.outputs,
        run,
        (q, k, v, entering),
        (everything, everything, block, _split_state_spec(run.layout)),
        (_shape(q.shape, q.dtype, (q, k, v)), _shape(shape, jnp.float32, (q, k, v))),
        (block, state),
    )


def _entering(run: _Run, k, v, state):
    """The states [B, H, splits, D, D] entering the splits; `state` enters the first of the run."""
    layout = run.layout
    if layout.splits == 1:
        return state[:, :, None]
    everything, block = _token_specs(layout)
    shape = (*state.shape[:2], layout.splits, *state.shape[2:])
    left = _call(
        triton_kernels.states,
        run,
        (k, v),
        (everything, block),
        _shape(shape, jnp.float32, (k, v)),
        _split_state_spec(layout),
    )
    if layout.reverse:
        states = jnp.concatenate([left[:, :, 1:], state[:, :, None]], axis=2)
        weights = jnp.triu(_boundary_weights(run)[..., 1:, 1:])
    else:
        states = jnp.concatenate([state[:, :, None], left[:, :, :-1]], axis=2)
        weights = jnp.tril(_boundary_weights(run)[..., :-1, :-1])
    weights = jnp.broadcast_to(weights, (len(states), *weights.shape[1:]))
    return jnp.einsum("bhij,bhjde->bhide", weights, states, precision=lax.Precision.HIGHEST)


def _boundary_weights(run: _Run) -> jax.Array:
    """Decay between any two ends of splits, [b, H, splits + 1, splits + 1]; 0 across segments."""
    layout = run.layout
    ends = jnp.minimum(jnp.arange(layout.splits + 1) * layout.chunks * layout.chunk, layout.length)
    count, segment = ends[None], jnp.zeros_like(ends)[None]
    if run.positions is not None:
        count, segment = (x[:, ends] for x in run.positions)
    distance = jnp.abs(count[:, :, None] - count[:, None, :])[:, None]
    linked = (segment[:, :, None] == segment[:, None, :])[:, None]
    return jnp.where(linked, jnp.exp(-run.slopes[:, None, None] * distance), 0)


def _one_token(interpret, q, k, v, slopes, state, segment_ids):
    batch, _, heads, dim = q.shape
    layout = _layout(q.shape, q.dtype, 1, interpret)
    width, columns = layout.width, layout.columns
    everything = pl.BlockSpec((None, None, width), lambda e, s, h, b: (b, h, 0))
    block = pl.BlockSpec((None, None, columns), lambda e, s, h, b: (b, h, e))
    square = pl.BlockSpec(_state_block(layout), lambda e, s, h, b: (b, h, 0, e))
    segments = () if segment_ids is None else (segment_ids,)
    tokens = [x[:, 0] for x in (q, k, v)]
    out, state = pl.pallas_call(
        functools.partial(triton_kernels.one_token, layout=layout),
        out_shape=(
            _shape((batch, heads, dim), q.dtype, tokens),
            _shape(state.shape, state.dtype, (*tokens, state)),
        ),
        grid=(width // columns, 1, heads, batch),
        in_specs=[
            pl.BlockSpec((1,), lambda e, s, h, b: (h,)),
            *[pl.BlockSpec((None, 1), lambda e, s, h, b: (b, 0))] * len(segments),
            everything,
            everything,
            block,
            square,
        ],
        out_specs=(block, square),
        input_output_aliases={4 + len(segments): 1},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="lightning_attention_one_token",
    )(slopes, *segments, *tokens, state)
    return out[:, None], state


def _token_specs(layout: Layout) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Of all the columns of a [B, T, H, D] array, and of one program's block of them."""
    everything = (None, layout.length, None, layout.width)
    block = (None, layout.length, None, layout.columns)
    return (
        pl.BlockSpec(everything, lambda e, s, h, b: (b, 0, h, 0)),
        pl.BlockSpec(block, lambda e, s, h, b: (b, 0, h, e)),
    )


def _state_block(layout: Layout) -> tuple:
    return (None, None, layout.width, layout.columns)


def _split_state_spec(layout: Layout) -> pl.BlockSpec:
    shape = (None, *_state_block(layout))
    return pl.BlockSpec(shape, lambda e, s, h, b: (b, h, s, 0, e))


def _shape(shape: tuple[int, ...], dtype, operands) -> jax.ShapeDtypeStruct:
    """The type of a result; inside `shard_map` it varies over the mesh axes its operands do."""
    varying = jax.typeof(operands[0]).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)


def _call(kernel, run: _Run, operands, specs, shapes, out_specs):
    """Launches a kernel over (blocks of columns, splits, heads, rows)."""
    layout, positions = run.layout, run.positions or ()
    batch, _, heads, _ = operands[0].shape
    blocks = Blocks.of(operands[0].dtype, layout.dim, segments=run.positions is not None)
    gaps = pl.BlockSpec((None, layout.length + 1), lambda e, s, h, b: (b, 0))
    return pl.pallas_call(
        functools.partial(kernel, layout=layout),
        out_shape=shapes,
        grid=(layout.width // layout.columns, layout.splits, heads, batch),
        in_specs=[
            pl.BlockSpec((1,), lambda e, s, h, b: (h,)),
            *[gaps] * len(positions),
            *specs,
        ],
        out_specs=out_specs,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=layout.interpret,
        name=f"lightning_attention_{kernel.__name__}",
    )(run.slopes, *positions, *operands)
