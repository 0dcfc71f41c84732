"""Importance ratios between two policies' log-probabilities of the same sampled tokens."""

import math

import jax
import jax.numpy as jnp

# exp(20) = 4.9e8: far outside any trust region, and its square still fits float32.
LOG_RATIO_LIMIT = 20.0


def log_ratio(numerator: jax.Array, denominator: jax.Array, mask: jax.Array) -> jax.Array:
    """clip(numerator - denominator, -20, 20) where `mask` > 0, else exactly 0; all [..., T].

    Values behind the mask may be NaN or infinite: neither they nor their gradients get through.
    Beyond the limit the gradient is zero. At least float32.
    """
    keep = mask > 0
    difference = jnp.where(keep, _float32(numerator), 0) - jnp.where(keep, _float32(denominator), 0)
    return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def ratio_bounds(eps_low: float | None, eps_high: float | None) -> tuple[float, float]:
    """Least and greatest ratio, 1 - eps_low and 1 + eps_high; infinite where there is no bound."""
    low = -math.inf if eps_low is None else 1 - eps_low
    return low, math.inf if eps_high is None else 1 + eps_high


def sequence_log_ratio(token_log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean token log-ratio of a sequence, [..., T] -> [..., 1]. GSPO, arXiv 2507.18071 eq. 7."""
    tokens = jnp.maximum((mask > 0).sum(-1, keepdims=True), 1)
    return token_log_ratio.sum(-1, keepdims=True) / tokens


def truncated_importance_weights(
    old_logprobs: jax.Array,
    rollout_logprobs: jax.Array,
    mask: jax.Array,
    *,
    low: float = 0.0,
    high: float = 2.0,
) -> jax.Array:
    """TIS: clip(pi_old / pi_rollout, low, high) without gradient, [..., T]; 1 behind the mask.

    Corrects for a sampler whose probabilities differ from the trainer's at the same parameters
    (`old_logprobs`: the trainer's score before the first update). Multiply the token weights by
    it and give `old_logprobs` to the objective as the behaviour policy. The bounds are ratios, not
    deltas from 1, as in slime (`--tis-clip-low 0 --tis-clip 2`) and in Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training".
    """
    ratio = jnp.exp(log_ratio(old_logprobs, rollout_logprobs, mask))
    return jax.lax.stop_gradient(jnp.clip(ratio, low, high))


def _float32(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
