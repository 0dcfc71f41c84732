"""The public lightning attention: checks its arguments and picks an implementation."""

import functools

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax

from pallas_kernels import target
from pallas_kernels.lightning_attention import mosaic_tpu, reference, triton, xla

IMPLEMENTATIONS = {
    "reference": reference.lightning_attention,
    "xla": xla.lightning_attention,
    "mosaic_tpu": mosaic_tpu.lightning_attention,
    "triton": triton.lightning_attention,
}
PALLAS = {"tpu": ("mosaic_tpu", mosaic_tpu), "gpu": ("triton", triton)}


@functools.partial(jax.jit, static_argnames="implementation")
def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    *,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Causal linear attention with a fixed scalar decay per head.

    With lam = exp(-slope), per row and head:

        S_t = lam * S_{t-1} + k_t^T v_t        o_t = q_t S_t = sum_{s<=t} lam^(t-s) (q_t . k_s) v_s

    No scaling, no softmax, no denominator: the caller applies those it wants. Decays, scores and
    state are float32 whatever the dtype of q, k, v (float64 if that is float64).

    Segments: a token with segment id 0 is padding, wherever it stands; it neither decays nor
    updates the state, its output and its gradients are 0. Where the id changes between one valid
    token and the next, the state restarts from zero. `initial_state` belongs to the first segment
    of the row; the final state is that after the last valid token, or `initial_state` in a row
    of padding.

    Gradients reach q, k, v and `initial_state`; the decays are constants, so that of slopes is 0.

    Args:
      q, k, v: [B, T, H, D], one floating dtype, T >= 1.
      slopes: [H], positive decay rates.
      initial_state: [B, H, D, D] as (d_k, d_v); zeros if None.
      segment_ids: int [B, T]; None means one segment without padding.
      implementation: "reference", "xla", "mosaic_tpu", "triton", or None for the platform's own
        where it takes this shape and dtype, else "xla", with a warning that says why.

    Returns:
      out: [B, T, H, D] in the dtype of q.
      final_state: [B, H, D, D] in float32.

    Raises:
      ValueError: on mismatched shapes or dtypes, or an implementation that is not available.

    Source: Lightning Attention-2 (arXiv 2401.04658), equations 2-5; MiniMax-01 (arXiv 2501.08313).
    """
    _check(q, k, v, slopes, initial_state, segment_ids)
    implementation = _choose(q) if implementation is None else _available(implementation, q)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if initial_state is None:  # zeros_like an outer product: keeps the inputs' sharding
        initial_state = jnp.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None, :], dtype)
    return IMPLEMENTATIONS[implementation](
        q, k, v, lax.stop_gradient(slopes), initial_state.astype(dtype), segment_ids
    )


def _available(implementation: str, q: jax.Array) -> str:
    """`implementation`, or ValueError if it does not exist, or not for this platform and shape."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"lightning_attention: there is no implementation {implementation!r}; "
            f"choose one of {', '.join(map(repr, IMPLEMENTATIONS))}, or None for the best of them"
        )
    for platform, (name, kernel) in PALLAS.items():
        if name == implementation:
            reason = kernel.unsupported(q)
            if target.platform() != platform:
                reason = f"needs a {platform}, and this is a {target.platform()}"
            if reason is not None:
                raise ValueError(f"lightning_attention: {name!r} {reason}; None picks another")
    return implementation


def _choose(q: jax.Array) -> str:
    """The platform's Pallas kernel where it takes q, else "xla"; a log line says why."""
    if target.platform() not in PALLAS:
        return "xla"
    name, kernel = PALLAS[target.platform()]
    mesh = jax.sharding.get_abstract_mesh()
    reason = kernel.unsupported(q)
    if not mesh.empty and mesh.size > 1 and not mesh.manual_axes:
        reason = "cannot be partitioned by XLA: call it inside shard_map"
    if reason is None:
        return name
    logging.log_first_n(logging.WARNING, "lightning_attention: %s %s; using xla", 4, name, reason)
    return "xla"


def _check(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: jax.Array | None,
) -> None:
    if q.ndim != 4 or q.shape[1] == 0 or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(
            "lightning_attention: q must be a float [B, T, H, D] with T >= 1, "
            f"got {q.dtype} {q.shape}"
        )
    batch, length, heads, dim = q.shape
    expected = {
        "k": (k, q.shape),
        "v": (v, q.shape),
        "slopes": (slopes, (heads,)),
        "initial_state": (initial_state, (batch, heads, dim, dim)),
        "segment_ids": (segment_ids, (batch, length)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"lightning_attention: {name} must have shape {shape} to go with q {q.shape}, "
                f"got {array.shape}"
            )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"lightning_attention: q, k, v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(
            f"lightning_attention: segment_ids must be integers, got {segment_ids.dtype}"
        )
