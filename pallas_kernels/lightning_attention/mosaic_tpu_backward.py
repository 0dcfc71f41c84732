"""The Pallas kernel of dk, dv and d initial state of `mosaic_tpu`, which runs back in time."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention.mosaic_tpu_forward import dot, only, same_head
from pallas_kernels.lightning_attention.mosaic_tpu_tiling import (
    LANES,
    Tiling,
    decay_change,
    distances,
    like,
)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dout: jax.Array,
    dfinal: jax.Array,
    rates: jax.Array,
    lane_rates: jax.Array,
    positions: jax.Array,
    tiles: Tiling,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dk, dv and the gradient of the initial state, operands folded as for `forward`.

    The blocks are visited from the last to the first; the block of the state's gradient carries
    it in VMEM, float32.
    """
    groups, block = tiles.step_groups, tiles.block(operands=6)
    steps = tiles.length // block
    tokens = pl.BlockSpec((1, block, groups * LANES), lambda g, b, t: (b, steps - 1 - t, g))
    state = pl.BlockSpec((1, groups, LANES, LANES), lambda g, b, t: (b, g, 0, 0))
    return pl.pallas_call(
        functools.partial(_backward_kernel, chunk=tiles.chunk, dim=tiles.dim),
        grid=(tiles.groups // groups, q.shape[0], steps),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, groups * LANES), lambda g, b, t: (0, g)),
            pl.BlockSpec((1, 2, block), lambda g, b, t: (b, 0, steps - 1 - t)),
            *(tokens, tokens, tokens, tokens, state),
        ],
        out_specs=[tokens, tokens, state],
        out_shape=[like(k), like(v), like(dfinal)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name="lightning_attention_backward",
    )(rates, lane_rates, positions, q, k, v, dout, dfinal)


def _backward_kernel(
    rates, lane_rates, positions, q, k, v, dout, dfinal, dk, dv, dstate, *, chunk: int, dim: int
):
    @pl.when(pl.program_id(2) == 0)
    def _():
        dstate[...] = dfinal[...]

    groups = dstate.shape[1]
    share = LANES // dim
    for start in reversed(range(0, q.shape[1], chunk)):
        time = slice(start, start + chunk)
        distance = distances(positions[0, :, time], transpose=True)
        for group in range(groups):
            lanes = slice(group * LANES, (group + 1) * LANES)
            query, key, value, dresult = (x[0, time, lanes] for x in (q, k, v, dout))
            lane_rate, old = lane_rates[:, lanes], dstate[0, group]
            write, dnew = jnp.exp2(lane_rate * distance.write), old.astype(q.dtype)
            dkey = write * dot(value, dnew, transpose_b=True)
            dvalue = write * dot(key, dnew)
            for head in range(share):
                rate = rates[(pl.program_id(0) * groups + group) * share + head]
                weight = jnp.exp2(rate * distance.intra)
                head_query, head_dresult = only(query, head, dim), only(dresult, head, dim)
                dscores = weight * dot(value, head_dresult, transpose_b=True)
                scores = weight * dot(key, head_query, transpose_b=True)
                dkey += dot(dscores.astype(q.dtype), head_query)
                dvalue += dot(scores.astype(q.dtype), head_dresult)
            dk[0, time, lanes] = dkey.astype(dk.dtype)
            dv[0, time, lanes] = dvalue.astype(dv.dtype)
            read = decayed(dresult, lane_rate * distance.read)
            update = same_head(dot(query, read, transpose_a=True), dim)
            dstate[0, group] = old + decay_change(lane_rate, distance.whole) * old + update


def decayed(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x weighted by 2^exponent, computed in float32, in its dtype."""
    return (x.astype(jnp.float32) * jnp.exp2(exponent)).astype(x.dtype)
