"""Policy-gradient objectives on the log-probabilities of sampled tokens.

All share one call:

    loss, metrics = cispo(logprobs, behaviour_logprobs, advantages, mask, eps_high=4.0)

- logprobs [..., T], normally [P, G, T] (P prompts, G samples, T response tokens): of the sampled
  tokens under the policy being trained. The only argument that gets a gradient.
- behaviour_logprobs, same shape: under the policy that sampled them (pi_old).
- advantages: one a sample [P, G], or one a token [P, G, T].
- mask, same shape: > 0 where a token counts (not padding, not a tool's output). What the other
  arrays hold elsewhere, NaN included, has no effect.
- bounds are deltas from 1: ratios in [1 - eps_low, 1 + eps_high]; None is no bound.
- aggregation names a weighting of `mmrl.rl.aggregation`; `weights` [P, G, T] replaces it and is
  what micro-batches need.

loss is the scalar sum(weights * token loss). For cispo and reinforce its value means nothing (it
contains log pi), only its gradient does. metrics are those of `mmrl.rl.metrics.policy_metrics`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmrl.rl.aggregation import token_weights
from mmrl.rl.metrics import Metrics, policy_metrics
from mmrl.rl.ratios import log_ratio, ratio_bounds, sequence_log_ratio


def cispo(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_high: float | None,
    eps_low: float | None = None,
    mask_eps_high: float | None = None,
    mask_eps_low: float | None = None,
    aggregation: str = "group",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """-sg(clip(r, 1 - eps_low, 1 + eps_high) * M) * A * log pi. MiniMax-M1, 2506.13585 eqs. 4-7.

    The clipped ratio only scales the gradient, so no token loses it: dloss/dlogp = -w M A weight.
    With A < 0 and a huge ratio it keeps pushing, capped at 1 + eps_high. The paper sets no lower
    bound and publishes no number for eps_high; 4.0, so ratios up to 5, is usual (ScaleRL, slime).

    M, the unified form's trust region (eqs. 6-7), is on where a mask bound is given: 0 where
    A > 0 and r > 1 + mask_eps_high or A < 0 and r < 1 - mask_eps_low, r unclipped. With mask bounds
    and eps_high=None the gradient is PPO's. Whether M1 trained with M is not stated.

    Beware when comparing: TRL's epsilon_high is the greatest ratio itself, and slime's lower bound
    of 0.8 is on unless --eps-clip 1 (see `mmrl.rl.conventions`).
    """
    logprobs, token_log_ratio, advantages = _masked(logprobs, behaviour_logprobs, advantages, mask)
    ratio = jax.lax.stop_gradient(jnp.exp(token_log_ratio))
    dropped = _leaves_trust_region(ratio, advantages, mask_eps_low, mask_eps_high)
    scale = jnp.where(dropped, 0, jnp.clip(ratio, *ratio_bounds(eps_low, eps_high)))
    loss = _weighted_sum(-scale * advantages * logprobs, mask, aggregation, weights)
    bounds = dict(eps_low=eps_low, eps_high=eps_high)
    return loss, policy_metrics(loss, ratio, token_log_ratio, dropped, mask, **bounds)


def reinforce(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    aggregation: str = "batch",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """-A * log pi (Williams 1992): no importance ratio, right only on policy.

    Aggregation "batch" by default; Williams' sum over an episode is "constant", max_length=1.
    """
    logprobs, token_log_ratio, advantages = _masked(logprobs, behaviour_logprobs, advantages, mask)
    loss = _weighted_sum(-advantages * logprobs, mask, aggregation, weights)
    ratio, none_dropped = jnp.exp(token_log_ratio), jnp.zeros_like(mask, bool)
    return loss, policy_metrics(loss, ratio, token_log_ratio, none_dropped, mask)


def ppo(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_high: float | None = 0.2,
    eps_low: float | None = 0.2,
    dual_clip: float | None = None,
    aggregation: str = "batch",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A). PPO (arXiv 1707.06347 eq. 7).

    With `dual_clip` = c > 1 the surrogate is at least c A where A < 0 (arXiv 1912.09729): above
    r = c such tokens lose their gradient. c is the paper's, a ratio and not a delta; it uses 3.
    There is no critic here: advantages are given, per sample or per token.
    """
    logprobs, token_log_ratio, advantages = _masked(logprobs, behaviour_logprobs, advantages, mask)
    ratio = jnp.exp(token_log_ratio)
    surrogate, dropped = _clipped_surrogate(ratio, advantages, eps_low, eps_high, dual_clip)
    loss = _weighted_sum(-surrogate, mask, aggregation, weights)
    bounds = dict(eps_low=eps_low, eps_high=eps_high)
    return loss, policy_metrics(loss, ratio, token_log_ratio, dropped, mask, **bounds)


def grpo(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_high: float | None = 0.2,
    eps_low: float | None = 0.2,
    dual_clip: float | None = None,
    aggregation: str = "sample",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """`ppo`'s surrogate, mean over a sample's tokens, then over samples (arXiv 2402.03300 eq. 3).

    The paper adds k3 to a reference policy: `ObjectiveConfig.kl_coefficient`.
    """
    return ppo(
        logprobs,
        behaviour_logprobs,
        advantages,
        mask,
        eps_high=eps_high,
        eps_low=eps_low,
        dual_clip=dual_clip,
        aggregation=aggregation,
        weights=weights,
    )


def dapo(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_high: float | None = 0.28,
    eps_low: float | None = 0.2,
    dual_clip: float | None = None,
    aggregation: str = "group",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """`ppo`'s surrogate with a higher upper bound, all of a group's tokens alike.

    DAPO (arXiv 2503.14476 eq. 8, section 4.1 for the bounds). Its published code averages over
    the batch's tokens instead ("batch"), and clips dually.
    """
    return ppo(
        logprobs,
        behaviour_logprobs,
        advantages,
        mask,
        eps_high=eps_high,
        eps_low=eps_low,
        dual_clip=dual_clip,
        aggregation=aggregation,
        weights=weights,
    )


def dr_grpo(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_high: float | None = 0.2,
    eps_low: float | None = 0.2,
    dual_clip: float | None = None,
    max_length: int | None = None,
    aggregation: str = "constant",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """`ppo`'s surrogate, a sample's sum over the constant `max_length` (default T), then the mean.

    Dr. GRPO (arXiv 2503.20783); its advantages are `group_relative(rewards, std=None)`.
    """
    if weights is None:
        weights = token_weights(mask, aggregation, max_length=max_length)
    return ppo(
        logprobs,
        behaviour_logprobs,
        advantages,
        mask,
        eps_high=eps_high,
        eps_low=eps_low,
        dual_clip=dual_clip,
        weights=weights,
    )


def gspo(
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_high: float | None = 4e-4,
    eps_low: float | None = 3e-4,
    aggregation: str = "sample",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """`ppo`'s surrogate with the sequence's ratio s = exp(mean over its tokens of log r).

    GSPO (arXiv 2507.18071 eqs. 5-7, section 5.1 for the bounds), written as GSPO-token (eqs.
    13-14): s_t = sg(s) pi / sg(pi). The two have equal values and gradients where a sample has one
    advantage, and this one takes an advantage a token as well. Metrics count tokens.
    """
    logprobs, token_log_ratio, advantages = _masked(logprobs, behaviour_logprobs, advantages, mask)
    sequence = jax.lax.stop_gradient(sequence_log_ratio(token_log_ratio, mask))
    ratio = jnp.exp(sequence + logprobs - jax.lax.stop_gradient(logprobs))
    surrogate, dropped = _clipped_surrogate(ratio, advantages, eps_low, eps_high, None)
    loss = _weighted_sum(-surrogate, mask, aggregation, weights)
    bounds = dict(eps_low=eps_low, eps_high=eps_high)
    return loss, policy_metrics(loss, ratio, token_log_ratio, dropped, mask, **bounds)


OBJECTIVES: dict[str, Callable[..., tuple[jax.Array, Metrics]]] = {
    "cispo": cispo,
    "grpo": grpo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "gspo": gspo,
    "ppo": ppo,
    "reinforce": reinforce,
}


def _masked(
    logprobs: jax.Array, behaviour_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities, log-ratios and advantages, all [..., T] and 0 where `mask` drops them."""
    shape = jnp.shape(logprobs)
    if jnp.shape(behaviour_logprobs) != shape or jnp.shape(mask) != shape:
        raise ValueError(
            f"logprobs, behaviour_logprobs and mask must have one shape [..., T], got {shape}, "
            f"{jnp.shape(behaviour_logprobs)} and {jnp.shape(mask)}"
        )
    if jnp.shape(advantages) not in (shape, shape[:-1]):
        raise ValueError(
            f"advantages must be one a sample {shape[:-1]} or one a token {shape}, "
            f"got {jnp.shape(advantages)}"
        )
    if jnp.ndim(advantages) < len(shape):
        advantages = jnp.expand_dims(advantages, -1)
    advantages = jnp.where(mask > 0, jax.lax.stop_gradient(advantages), 0)
    behaviour_logprobs = jax.lax.stop_gradient(behaviour_logprobs)
    token_log_ratio = log_ratio(logprobs, behaviour_logprobs, mask)
    return jnp.where(mask > 0, logprobs, 0), token_log_ratio, advantages


def _leaves_trust_region(
    ratio: jax.Array, advantages: jax.Array, eps_low: float | None, eps_high: float | None
) -> jax.Array:
    """Whether the ratio is out of bounds on the side to which the advantage pushes it."""
    low, high = ratio_bounds(eps_low, eps_high)
    return ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))


def _clipped_surrogate(
    ratio: jax.Array,
    advantages: jax.Array,
    eps_low: float | None,
    eps_high: float | None,
    dual_clip: float | None,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped (dually, if asked) ratio times advantage, and where it has no gradient."""
    dropped = _leaves_trust_region(ratio, advantages, eps_low, eps_high)
    limit = jnp.clip(ratio, *ratio_bounds(eps_low, eps_high))
    if dual_clip is not None:
        overshot = (advantages < 0) & (ratio > dual_clip)
        dropped, limit = dropped | overshot, jnp.where(overshot, dual_clip, limit)
    return jnp.where(dropped, jax.lax.stop_gradient(limit), ratio) * advantages, dropped


def _weighted_sum(
    token_loss: jax.Array, mask: jax.Array, aggregation: str, weights: jax.Array | None
) -> jax.Array:
    return (token_loss * (token_weights(mask, aggregation) if weights is None else weights)).sum()
