"""The forward Pallas kernel of `mosaic_tpu`; with other operands it is also the kernel of dq."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention.mosaic_tpu_tiling import (
    LANES,
    Tiling,
    decay_change,
    distances,
    like,
)
from pallas_kernels.lightning_attention.parts import parts


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    initial: jax.Array,
    rates: jax.Array,
    lane_rates: jax.Array,
    positions: jax.Array,
    tiles: Tiling,
    exact: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Outputs and final state, all operands folded as `mosaic_tpu_tiling` describes.

    `exact`: bfloat16 tokens meet scores and states that keep more than bfloat16's digits.

    The grid runs over lane groups, rows and, in order, time. The block of the final state does
    not move with time: it stays in VMEM, float32, and carries the state from step to step.
    """
    groups, block = tiles.step_groups, tiles.block(operands=4)
    steps = tiles.length // block
    tokens = pl.BlockSpec((1, block, groups * LANES), lambda g, b, t: (b, t, g))
    state = pl.BlockSpec((1, groups, LANES, LANES), lambda g, b, t: (b, g, 0, 0))
    return pl.pallas_call(
        functools.partial(_forward_kernel, chunk=tiles.chunk, dim=tiles.dim, exact=exact),
        grid=(tiles.groups // groups, q.shape[0], steps),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, groups * LANES), lambda g, b, t: (0, g)),
            pl.BlockSpec((1, 2, block), lambda g, b, t: (b, 0, t)),
            *(tokens, tokens, tokens, state),
        ],
        out_specs=[tokens, state],
        out_shape=[like(q), like(initial)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name="lightning_attention_forward",
    )(rates, lane_rates, positions, q, k, v, initial)


def _forward_kernel(
    rates, lane_rates, positions, q, k, v, initial, out, state, *, chunk: int, dim: int, exact: bool
):
    @pl.when(pl.program_id(2) == 0)
    def _():
        state[...] = initial[...]

    groups = state.shape[1]
    share = LANES // dim
    for start in range(0, q.shape[1], chunk):
        time = slice(start, start + chunk)
        distance = distances(positions[0, :, time])
        for group in range(groups):
            lanes = slice(group * LANES, (group + 1) * LANES)
            query, key, value = (x[0, time, lanes] for x in (q, k, v))
            lane_rate, old = lane_rates[:, lanes], state[0, group]
            result = functools.reduce(jnp.add, (dot(query, x) for x in parts(old, q.dtype, exact)))
            result *= jnp.exp2(lane_rate * distance.read)
            for head in range(share):
                rate = rates[(pl.program_id(0) * groups + group) * share + head]
                weight = jnp.exp2(rate * distance.intra)
                scores = weight * dot(query, only(key, head, dim), transpose_b=True)
                for part in parts(scores, q.dtype, exact):
                    result += dot(part, only(value, head, dim))
            out[0, time, lanes] = result.astype(out.dtype)
            written = value.astype(jnp.float32) * jnp.exp2(lane_rate * distance.write)
            new = old + decay_change(lane_rate, distance.whole) * old
            for part in parts(written, q.dtype, exact):
                new += same_head(dot(key, part, transpose_a=True), dim)
            state[0, group] = new


def dot(
    a: jax.Array, b: jax.Array, *, transpose_a: bool = False, transpose_b: bool = False
) -> jax.Array:
    """a b in float32, in full precision for float32 operands."""
    contracting = ((0 if transpose_a else 1,), (1 if transpose_b else 0,))
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (contracting, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def only(x: jax.Array, head: int, dim: int) -> jax.Array:
    """[C, 128] with the lanes of other heads zeroed."""
    if dim == LANES:
        return x
    return jnp.where(_head(x.shape, 1, dim) == head, x, jnp.zeros_like(x))


def same_head(x: jax.Array, dim: int) -> jax.Array:
    """[128, 128] with only its diagonal blocks."""
    if dim == LANES:
        return x
    return jnp.where(_head(x.shape, 0, dim) == _head(x.shape, 1, dim), x, 0)


def _head(shape: tuple[int, ...], axis: int, dim: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis) // dim
