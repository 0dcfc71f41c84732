"""Grouped matmul: the public function, its checks and the choice of implementation."""

import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.reference import grouped_matmul_reference
from pallas_kernels.grouped_matmul.xla import grouped_matmul_xla


def _ragged_dot(x: jax.Array, w: jax.Array, group_sizes: jax.Array) -> jax.Array:
    out = jax.lax.ragged_dot(x, w, group_sizes, preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def _best(x: jax.Array, w: jax.Array, group_sizes: jax.Array) -> jax.Array:
    # Decided by the platform compiled for, which need not be the one this process runs on.
    return jax.lax.platform_dependent(
        x, w, group_sizes, tpu=_ragged_dot, default=grouped_matmul_xla
    )


IMPLEMENTATIONS: dict[str | None, Callable[..., jax.Array]] = {
    None: _best,
    "ragged_dot": _ragged_dot,
    "reference": grouped_matmul_reference,
    "xla": grouped_matmul_xla,
}


def grouped_matmul(
    x: jax.Array, w: jax.Array, group_sizes: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """out[n] = x[n] @ w[e] for each row n of group e, accumulated in float32.

    Args:
        x: [N, K], rows sorted by group.
        w: [E, K, M], one matrix a group, in x.dtype.
        group_sizes: [E] int32, rows of each group, in order; their sum is at most N.
        implementation: "reference" (E dense products and a choice), "ragged_dot" (XLA's own: fast
            on TPU, E dense products on CPU and GPU), "xla" (tiles of rows), or None for
            "ragged_dot" on TPU and "xla" elsewhere.

    Returns:
        [N, M] in x.dtype; 0 in the rows past the last group. Differentiable in x and w.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.

    Source: Gale et al., MegaBlocks, arXiv 2211.15841 (experts without dropped tokens).
    """
    if implementation not in IMPLEMENTATIONS:
        names = [name for name in IMPLEMENTATIONS if name]
        nearest = difflib.get_close_matches(str(implementation), names, 1, 0)[0]
        raise ValueError(
            f"grouped_matmul: unknown implementation {implementation!r}; did you mean {nearest!r}?"
            f" One of {names} or None."
        )
    n_groups = w.shape[0]
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1] or group_sizes.shape != (n_groups,):
        raise ValueError(
            "grouped_matmul: x must be [N, K], w [E, K, M] and group_sizes [E], got"
            f" {x.shape}, {w.shape} and {group_sizes.shape}."
        )
    with jax.named_scope("grouped_matmul"):
        return IMPLEMENTATIONS[implementation](x, w, group_sizes)
