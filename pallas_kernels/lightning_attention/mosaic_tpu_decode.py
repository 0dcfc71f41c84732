"""The Pallas kernel of `mosaic_tpu` for one token a row: a step of decoding for a whole batch."""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention.mosaic_tpu_tiling import like

_STEP_HEADS = 32  # of [D, D] float32 states in one grid step


def decode(
    q: jax.Array, k: jax.Array, v: jax.Array, state: jax.Array, change: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """S' = S + valid * change * S + k^T v and o = q S' for q, k, v [B, H, D], all in float32.

    `state` [B, H, D, D] is float32 and the new state takes its place in memory; `change` [H] is
    lam - 1; `valid` [B] is 1, or 0 in rows of padding, where q, k and v must be 0.
    """
    batch, heads, dim = q.shape
    block = step_heads(heads)
    vectors = pl.BlockSpec((1, block, dim), lambda b, h: (b, h, 0))
    states = pl.BlockSpec((1, block, dim, dim), lambda b, h: (b, h, 0, 0))
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    return pl.pallas_call(
        _decode_kernel,
        grid=(batch, heads // block),
        in_specs=[scalars, scalars, vectors, vectors, vectors, states],
        out_specs=[vectors, states],
        out_shape=[like(q), like(state)],
        input_output_aliases={5: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        name="lightning_attention_decode",
    )(change, valid, q, k, v, state)


def step_heads(heads: int) -> int:
    """Heads of a grid step: whole tiles of sublanes, or all there are."""
    size = math.gcd(heads, _STEP_HEADS)
    return heads if size % 8 else size


def _decode_kernel(change, valid, q, k, v, state, out, new_state):
    heads = q.shape[1]
    query, key = (x[0].astype(jnp.float32).T for x in (q, k))  # [D, heads]
    value = v[0].astype(jnp.float32)
    rows = []
    for head in range(heads):
        moved = change[pl.program_id(1) * heads + head] * valid[pl.program_id(0)]
        old = state[0, head]
        new = old + moved * old + key[:, head : head + 1] * value[head : head + 1]
        new_state[0, head] = new
        rows.append(jnp.sum(query[:, head : head + 1] * new, axis=0, keepdims=True))
    out[0] = jnp.concatenate(rows).astype(out.dtype)
