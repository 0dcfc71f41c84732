"""The fused head's formula with all logits at once: slow in memory and obvious."""

import jax
import jax.numpy as jnp


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    support: jax.Array | None,
    temperature: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """log softmax(logits / temperature) at the tokens, and that softmax's entropy.

    Args: hidden [N, M], head [V, M], tokens [N], support [N, K] (-1 padded) or None. Differentiable
    by ordinary autodiff. Returns logprobs [N] and entropy [N].
    """
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum(
        "nm,vm->nv", hidden.astype(dtype), head.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    return of_logits(logits / temperature, tokens, support)


def of_logits(
    logits: jax.Array, tokens: jax.Array, support: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The same from tempered logits [N, V]."""
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    chosen = jnp.take_along_axis(logp, tokens[:, None], axis=1)[:, 0]
    if support is None:
        return chosen, entropy
    kept = jnp.take_along_axis(logp, jnp.maximum(support, 0), axis=1)
    whole = jnp.all(support < 0, axis=1, keepdims=True)
    kept = jnp.where(support >= 0, kept, jnp.where(whole, 0, -jnp.inf))
    lse = jax.nn.logsumexp(kept, axis=1)
    return chosen - jnp.where(whole[:, 0], 0, lse), entropy
