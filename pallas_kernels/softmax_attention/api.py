"""Softmax attention: the public functions, their checks and the choice of implementation."""

import difflib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.softmax_attention.reference import softmax_attention_reference
from pallas_kernels.softmax_attention.xla import softmax_attention_xla

IMPLEMENTATIONS = {"reference": softmax_attention_reference, "xla": softmax_attention_xla}


def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    layer: jax.Array | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of each query to the kv slots at or before its position, and its log-sum-exp.

        score[t, s] = scale * q[t] . k[s]    where 0 <= kv_position[s] <= q_position[t]
                                             and the segment ids, if given, are equal
        lse[t] = log sum_s exp(score[t, s]),   out[t] = sum_s exp(score[t, s] - lse[t]) v[s]

    A query that sees no slot has out 0, lse -inf and zero gradients. Scores and softmax are
    float32; the two products take their operands in k.dtype and accumulate in float32.

    Block sizes follow the shapes seen here: with a batch or heads sharded over a mesh, call it
    inside `jax.shard_map`.

    Args:
        q: [B, T, H, D].
        k, v: [Bk, Hkv, S, D], the layout of a cache, of one dtype. Query head h reads kv head
            h // (H / Hkv); query row b reads kv row b // (B / Bk), so that the samples of a
            prompt share its keys and values without a copy. Empty slots must hold finite values.
        layer: where given, k and v are [L, Bk, Hkv, S, D], a cache of L layers, and this is the one
            to read: for a few queries in blocks, without a copy of the layer.
        q_positions, kv_positions: [B, T] and [Bk, S] int32; -1 marks padding or an empty slot.
        q_segment_ids, kv_segment_ids: [B, T] and [Bk, S] int32, both or neither.
        scale: D ** -0.5 if None.
        implementation: "reference" (dense), "xla" (blocks, memory linear in T + S), or None for
            "xla".

    Returns:
        out [B, T, H, D] in q.dtype and lse [B, T, H] in float32, both differentiable in q, k, v.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.

    Sources: Rabe & Staats, arXiv 2112.05682; Dao et al., arXiv 2205.14135 (backward from lse).
    """
    implementation = implementation or "xla"
    if implementation not in IMPLEMENTATIONS:
        nearest = difflib.get_close_matches(implementation, IMPLEMENTATIONS, 1, 0) or ["xla"]
        raise ValueError(
            f"softmax_attention: unknown implementation {implementation!r}; did you mean"
            f" {nearest[0]!r}? One of {sorted(IMPLEMENTATIONS)} or None."
        )
    of_k, of_v = (x if layer is None else _without_layers(x) for x in (k, v))
    _check_shapes(q, of_k, of_v, q_positions, kv_positions, q_segment_ids, kv_segment_ids)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with jax.named_scope("softmax_attention"):
        return IMPLEMENTATIONS[implementation](
            q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids, scale, layer
        )


def merge_attention(parts: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Attention over the union of disjoint sets of kv slots, from the (out, lse) of each.

        out = sum_i exp(lse_i - lse) out_i,   lse = log sum_i exp(lse_i)

    Args:
        parts: pairs of out [B, T, H, D] and lse [B, T, H], as `softmax_attention` returns them.

    Returns:
        out [B, T, H, D] in the dtype of the first part; 0 where every part is empty.

    Source: Dao et al., arXiv 2205.14135, section 3.1.
    """
    lse = jnp.stack([lse for _, lse in parts])
    maximum = jax.lax.stop_gradient(lse.max(0))
    weights = jnp.exp(lse - jnp.where(jnp.isfinite(maximum), maximum, 0.0))
    total = weights.sum(0)
    weights /= jnp.where(total > 0, total, 1.0)
    out = sum(weight[..., None] * out for weight, (out, _) in zip(weights, parts, strict=True))
    return out.astype(parts[0][0].dtype)


def _without_layers(x: jax.Array) -> jax.ShapeDtypeStruct:
    if x.ndim != 5:
        raise ValueError(
            f"softmax_attention: with a layer, k and v must be [L, Bk, Hkv, S, D], got {x.shape}."
        )
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def _check_shapes(q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids) -> None:
    if q.ndim != 4 or k.ndim != 4 or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"softmax_attention: q must be [B, T, H, D] and k [Bk, Hkv, S, D], got {q.shape} and"
            f" {k.shape}."
        )
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(
            f"softmax_attention: k and v must agree in shape and dtype, got {k.shape} {k.dtype}"
            f" and {v.shape} {v.dtype}."
        )
    for name, queries, keys in (
        ("batch", q.shape[0], k.shape[0]),
        ("heads", q.shape[2], k.shape[1]),
    ):
        if queries % keys:
            raise ValueError(
                f"softmax_attention: the {name} of q ({queries}) must be a multiple of that of k"
                f" ({keys}); k and v are [Bk, Hkv, S, D]."
            )
    if (q_segment_ids is None) != (kv_segment_ids is None):
        raise ValueError(
            "softmax_attention: give both q_segment_ids and kv_segment_ids, or neither."
        )
    of_queries, of_slots = q.shape[:2], (k.shape[0], k.shape[2])
    for name, array, shape in (
        ("q_positions", q_positions, of_queries),
        ("kv_positions", kv_positions, of_slots),
        ("q_segment_ids", q_segment_ids, of_queries),
        ("kv_segment_ids", kv_segment_ids, of_slots),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"softmax_attention: {name} must be {shape}, got {array.shape}.")
