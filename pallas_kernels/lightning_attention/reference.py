"""Lightning attention as its defining recurrence, one token at a time: slow and obvious."""

import jax
import jax.numpy as jnp
from jax import lax


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    initial_state: jax.Array,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Computes S_t = lam * S_{t-1} + k_t^T v_t and o_t = q_t S_t, lam = exp(-slope) per head.

    Lightning Attention-2 (arXiv 2401.04658), section 3. Differentiable by ordinary autodiff.

    Args:
      q, k, v: [B, T, H, D].
      slopes: [H].
      initial_state: [B, H, D, D], (d_k, d_v), in the dtype to compute in.
      segment_ids: int [B, T], 0 for padding, or None.

    Returns:
      out [B, T, H, D] in the dtype of q, and the final state.
    """
    dtype = initial_state.dtype
    if segment_ids is None:
        segment_ids = jnp.ones_like(q[:, :, 0, 0], jnp.int32)
    change = jnp.expm1(-slopes.astype(dtype))[:, None, None]  # lam - 1: exact where lam is near 1

    def step(carry, token):
        state, current = carry  # current: segment of the last valid token, 0 before the first
        q_t, k_t, v_t, segment = token
        valid = (segment != 0)[:, None, None, None]
        reset = ((current != 0) & (segment != current))[:, None, None, None]
        kept = jnp.where(reset, 0, state)
        update = change * kept + k_t[..., :, None] * v_t[..., None, :]
        state = jnp.where(valid, kept + update, state)
        out = jnp.einsum("bhd,bhde->bhe", q_t, state, precision=lax.Precision.HIGHEST)
        return (state, jnp.where(segment != 0, segment, current)), jnp.where(valid[..., 0], out, 0)

    tokens = tuple(jnp.moveaxis(x.astype(dtype), 1, 0) for x in (q, k, v))
    segments = jnp.moveaxis(segment_ids, 1, 0)
    (state, _), out = lax.scan(
        step, (initial_state, jnp.zeros_like(segments[0])), (*tokens, segments)
    )
    return jnp.moveaxis(out, 0, 1).astype(q.dtype), state
