"""The definition: one dense masked softmax."""

import jax
import jax.numpy as jnp


def softmax_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    scale: float,
    layer: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + mask) v with k and v repeated; arguments as in `softmax_attention`."""
    if layer is not None:
        k, v = k[layer], v[layer]
    repeats, heads_per_kv_head = q.shape[0] // k.shape[0], q.shape[2] // k.shape[1]

    def repeat_heads(x: jax.Array) -> jax.Array:
        x = jnp.repeat(x.astype(jnp.float32), repeats, axis=0)
        return jnp.repeat(x, heads_per_kv_head, axis=1)

    kv_positions = jnp.repeat(kv_positions, repeats, axis=0)[:, None, None, :]
    visible = (kv_positions >= 0) & (kv_positions <= q_positions[:, None, :, None])
    if q_segment_ids is not None and kv_segment_ids is not None:
        kv_segment_ids = jnp.repeat(kv_segment_ids, repeats, axis=0)[:, None, None, :]
        visible &= kv_segment_ids == q_segment_ids[:, None, :, None]
    scores = scale * jnp.einsum("bthd,bhsd->bhts", q.astype(jnp.float32), repeat_heads(k))
    scores = jnp.where(visible, scores, -jnp.inf)
    any_visible = visible.any(-1)
    maximum = jax.lax.stop_gradient(jnp.where(any_visible, scores.max(-1), 0.0))
    weights = jnp.exp(scores - maximum[..., None])
    total = jnp.where(any_visible, weights.sum(-1), 1.0)
    out = jnp.einsum("bhts,bhsd->bthd", weights / total[..., None], repeat_heads(v))
    lse = jnp.where(any_visible, maximum + jnp.log(total), -jnp.inf)
    return out.astype(q.dtype), lse.swapaxes(1, 2)
