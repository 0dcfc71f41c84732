"""The public fused head: checks its arguments and picks an implementation."""

import difflib

import jax
import jax.numpy as jnp

from pallas_kernels.fused_head import reference, xla
from pallas_kernels.fused_head.xla import AxisName

IMPLEMENTATIONS = {"reference": reference.token_logprobs, "xla": xla.token_logprobs}


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    support: jax.Array | None = None,
    axis_name: AxisName | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of chosen tokens and entropy of the distribution they were drawn from.

        z = hidden head^T / temperature        p = softmax(z)
        logprob = z[token] - log sum_{v in support} exp(z[v])        entropy = -sum_v p_v log p_v

    Logits are float32, from float32 operands at the highest precision (the float32 head of
    MiniMax-M1, arXiv 2506.13585, section 3.2), and float64 where hidden is. They are never all in
    memory, in the backward pass neither; gradients reach hidden and head, in their dtypes, and are
    summed in float32.

    Args:
      hidden: [N, M], the last layer's output.
      head: [V, M].
      tokens: int [N], 0 <= token < V.
      temperature: positive; without a gradient.
      support: int [N, K], the distinct ids that truncated sampling kept, -1 padded. The token's
        probability is normalised over them; the entropy is still that of all V. None, or a row of
        -1, means all ids.
      axis_name: inside `jax.shard_map` with `check_vma=False`, the mesh axes over whose devices the
        rows of the head lie in order, V of them on each; ids count over all of them.
      implementation: "reference", "xla", or None for "xla".

    Returns:
      logprobs [N] and entropy [N] in nats, float32.

    Raises:
      ValueError: on mismatched shapes or dtypes, a temperature that is not positive, or an
        implementation that is not available.

    Source: Milakov & Gimelshein, arXiv 1805.02867 (running sums of the softmax).
    """
    implementation = implementation or "xla"
    if implementation not in IMPLEMENTATIONS:
        nearest = difflib.get_close_matches(implementation, IMPLEMENTATIONS, 1, 0) or ["xla"]
        raise ValueError(
            f"token_logprobs: implementation {implementation!r} is not available here; did you "
            f"mean {nearest[0]!r}? One of {', '.join(map(repr, IMPLEMENTATIONS))}, or None"
        )
    if axis_name is not None and implementation != "xla":
        raise ValueError(f"token_logprobs: with an axis_name use 'xla', not {implementation!r}")
    _check(hidden, head, tokens, temperature, support)
    with jax.named_scope("token_logprobs"):
        if axis_name is None:
            return IMPLEMENTATIONS[implementation](hidden, head, tokens, support, temperature)
        return xla.token_logprobs(hidden, head, tokens, support, temperature, axis_name)


def _check(hidden, head, tokens, temperature, support) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(
            "token_logprobs: hidden must be [N, M] and head [V, M], "
            f"got {hidden.shape} and {head.shape}"
        )
    if tokens.shape != hidden.shape[:1] or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"token_logprobs: tokens must be integers of shape {hidden.shape[:1]}, "
            f"got {tokens.dtype} {tokens.shape}"
        )
    if support is not None and (
        support.ndim != 2
        or len(support) != len(hidden)
        or not jnp.issubdtype(support.dtype, jnp.integer)
    ):
        raise ValueError(
            f"token_logprobs: support must be integers [{len(hidden)}, K], "
            f"got {support.dtype} {support.shape}"
        )
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(
            f"token_logprobs: temperature must be positive, got {temperature}; "
            "score greedy tokens at 1"
        )
