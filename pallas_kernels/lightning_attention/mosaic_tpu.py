"""Lightning attention as Pallas kernels for TPUs (Mosaic), with the algebra of `xla`.

A grid step takes a block of tokens of several heads; states stay in VMEM from step to step, in
float32. Gradients keep the inputs only and compute the states anew: dq is the forward kernel of
(dout, v, k), whose state is S^T; dk and dv are a kernel that runs back in time, carrying dS. One
token a row is a decoding step, with a kernel of its own that updates the state in place.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention.mosaic_tpu_backward import backward
from pallas_kernels.lightning_attention.mosaic_tpu_decode import decode
from pallas_kernels.lightning_attention.mosaic_tpu_forward import forward
from pallas_kernels.lightning_attention.mosaic_tpu_tiling import (
    LANES,
    fold,
    fold_rates,
    fold_state,
    positions,
    tiling,
    unfold,
    unfold_state,
)


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    initial_state: jax.Array,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Block form of the recurrence of `reference.lightning_attention`: same arguments and results.

    Lightning Attention-2 (arXiv 2401.04658), algorithms 1 and 2. Products accumulate in float32.
    Scores and states meet bfloat16 tokens in two parts in the forward pass, so that a training pass
    gives what decoding gives, and rounded in the gradients; all is in full precision for float32.

    Raises:
      ValueError: if q is neither bfloat16 nor float32, or D is above 128.
    """
    if reason := unsupported(q):
        raise ValueError(f"lightning_attention: mosaic_tpu {reason}; use implementation='xla'")
    return _attention(q, k, v, slopes, initial_state, segment_ids)


def unsupported(q: jax.Array) -> str | None:
    """Why these kernels cannot take q, or None if they can."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 or float32, got {q.dtype}"
    if q.shape[-1] > LANES:
        return f"takes head dimensions up to {LANES}, got {q.shape[-1]}"
    return None


@jax.custom_vjp
def _attention(q, k, v, slopes, state, segment_ids):
    q, k, v = _valid_only(segment_ids, q, k, v)
    if q.shape[1] == 1:
        change = jnp.expm1(-slopes.astype(jnp.float32))
        valid = jnp.ones(q.shape[:1]) if segment_ids is None else segment_ids[:, 0] != 0
        query, key, value = (x[:, 0] for x in (q, k, v))
        out, state = decode(query, key, value, state, change, valid.astype(jnp.float32))
        return out[:, None], state
    tiles = tiling(q.shape, q.dtype)
    operands = [fold(x, tiles) for x in (q, k, v)]
    shared = (*fold_rates(slopes, tiles), positions(segment_ids, q.shape, tiles))
    out, final = forward(*operands, fold_state(state, tiles), *shared, tiles)
    return unfold(out, q.shape, tiles), unfold_state(final, q.shape, tiles)


def _forward(*inputs):
    return _attention(*inputs), inputs


def _backward(inputs, cotangents):
    q, k, v, slopes, state, segment_ids = inputs
    dout, dfinal = cotangents
    tiles = tiling(q.shape, q.dtype)
    operands = _valid_only(segment_ids, q, k, v, dout)
    query, key, value, dresult = (fold(x, tiles) for x in operands)
    shared = (*fold_rates(slopes, tiles), positions(segment_ids, q.shape, tiles))
    state = fold_state(state.mT, tiles)
    dq, _ = forward(dresult, value, key, state, *shared, tiles, exact=False)
    dk, dv, dstate = backward(query, key, value, dresult, fold_state(dfinal, tiles), *shared, tiles)
    dq, dk, dv = (unfold(x, q.shape, tiles) for x in (dq, dk, dv))
    return dq, dk, dv, None, unfold_state(dstate, q.shape, tiles), None


_attention.defvjp(_forward, _backward)


def _valid_only(segment_ids, *arrays):
    """Padding as zeros: a token of zeros adds nothing to any product."""
    if segment_ids is None:
        return arrays
    return [jnp.where((segment_ids != 0)[..., None, None], x, 0) for x in arrays]
