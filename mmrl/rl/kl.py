"""Per-token estimators of KL(pi || reference) from tokens sampled by pi (Schulman 2020,
"Approximating KL divergence", http://joschu.net/blog/kl-approx.html).

A good estimate of the value need not have a good gradient. With tokens drawn from pi and the
estimator differentiated as a loss term (Tang & Munos, arXiv 2506.09477):

- k1's gradient is the score itself, whose mean is zero: as a loss it penalises nothing. Put it
  into the reward instead, or use k2.
- k2's mean gradient is that of KL(pi || reference), though its value is biased.
- k3's mean gradient is that of KL(reference || pi): it pulls to the reference, with the other
  divergence's force. GRPO's choice (arXiv 2402.03300 eq. 4).

Tokens from an older policy bias all three by the missing importance ratio.
"""

import jax
import jax.numpy as jnp

from mmrl.rl.ratios import log_ratio

# x = log pi - log reference.
KL_ESTIMATORS = {
    "k1": lambda x: x,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: jnp.expm1(-x) + x,
}


def kl_penalty(
    logprobs: jax.Array,
    reference_logprobs: jax.Array,
    kind: str = "k3",
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """k1 = x, k2 = x^2 / 2 or k3 = exp(-x) - 1 + x with x = log pi - log reference; all [..., T].

    k1 and k3 are unbiased, k2 and k3 never negative. Positions that `mask` drops give exactly 0.
    x is clamped to +-20, beyond which there is no gradient; the reference gets none at all.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {kind!r}; one of {tuple(KL_ESTIMATORS)}")
    mask = jnp.ones_like(logprobs) if mask is None else mask
    reference_logprobs = jax.lax.stop_gradient(reference_logprobs)
    return KL_ESTIMATORS[kind](log_ratio(logprobs, reference_logprobs, mask))
