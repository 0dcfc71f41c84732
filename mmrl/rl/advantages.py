"""Advantages of whole responses from their rewards, without a critic.

All take rewards [P, G] (P prompts, G samples each) and an optional boolean `valid` [P, G]: a
sample whose reward failed (invalid, or not finite) enters no mean or deviation and gets 0.
Code bases differ on the deviation: slime and TRL divide by the unbiased "sample" one (G - 1), the
papers do not say; ours is the "population" one (G) unless asked.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# A spread below this is rounding, not information; slime's dynamic-sampling filter has the same.
MIN_STD = 1e-6


def group_relative(
    rewards: jax.Array,
    valid: jax.Array | None = None,
    *,
    std: str | None = "population",
    eps: float = 1e-6,
) -> jax.Array:
    """(R_i - mean of the group) / (std of the group + eps), [P, G]. GRPO, DAPO, MiniMax-M1.

    std None leaves the division out (Dr. GRPO, arXiv 2503.20783). A group with less than
    `MIN_STD` of deviation, so also a group of one, gets 0: it has no baseline to differ from.
    """
    valid = _valid(rewards, valid)
    centred, count = _centred(rewards, valid, axis=-1)
    return _scaled(centred, _deviation(centred, count, -1, std or "population"), std, eps)


def leave_one_out(rewards: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """R_i - mean of the group's other samples, [P, G]. RLOO (arXiv 2402.14740).

    Unbiased, unlike the group mean. A sample without others gets 0.
    """
    valid = _valid(rewards, valid)
    centred, count = _centred(rewards, valid, axis=-1)
    return jnp.where(count > 1, centred * count / jnp.maximum(count - 1, 1), 0)


def batch_normalised(
    rewards: jax.Array,
    valid: jax.Array | None = None,
    *,
    baseline: str = "batch",
    std: str | None = "population",
    eps: float = 1e-6,
) -> jax.Array:
    """(R_i - baseline) / (std over the batch + eps), [P, G].

    baseline "batch" is REINFORCE++ and works with one sample a prompt; "group" subtracts each
    group's own mean first (REINFORCE++-baseline, arXiv 2501.03262; ScaleRL, arXiv 2510.13786).

    Raises:
        ValueError: unknown baseline or std.
    """
    if baseline not in ("batch", "group"):
        raise ValueError(f"baseline must be 'batch' or 'group', not {baseline!r}")
    valid = _valid(rewards, valid)
    centred, _ = _centred(rewards, valid, axis=None if baseline == "batch" else -1)
    return _scaled(centred, _deviation(centred, valid.sum(), None, std or "population"), std, eps)


def informative(
    rewards: jax.Array, valid: jax.Array | None = None, *, min_std: float = MIN_STD
) -> jax.Array:
    """Whether each group's rewards differ, [P] bool: what dynamic sampling keeps (DAPO eq. 11)."""
    centred, count = _centred(rewards, _valid(rewards, valid), axis=-1)
    return _deviation(centred, count, -1, "population")[..., 0] > min_std


def overlong_shaping(lengths: jax.Array, *, max_length: int, buffer: int) -> jax.Array:
    """DAPO's soft overlong punishment, a reward term in [-1, 0] (arXiv 2503.14476 eq. 13).

    0 up to max_length - buffer tokens, then falling linearly to -1 at max_length and beyond.
    `lengths` counts response tokens, any shape. DAPO: max_length 20,480, buffer 4,096.

    Raises:
        ValueError: buffer outside 1..max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must be in 1..max_length ({max_length}), not {buffer}")
    return jnp.clip((max_length - buffer - jnp.asarray(lengths)) / buffer, -1.0, 0.0)


def brevity_shaping(
    rewards: ArrayLike, lengths: ArrayLike, *, max_lengths: ArrayLike, weights: ArrayLike
) -> jax.Array:
    """R - weight · max(R, 0) · length / max_length: of two solved responses the shorter is better.

    Arrays of one shape, or that broadcast to that of `rewards`; lengths count response tokens and
    weights lie in [0, 1). What is solved stays better than what is not, and wrong responses gain
    nothing by being short.
    """
    rewards = jnp.asarray(rewards)
    share = jnp.asarray(lengths) / jnp.asarray(max_lengths)
    return rewards - jnp.asarray(weights) * jnp.maximum(rewards, 0) * share


def _valid(rewards: jax.Array, valid: jax.Array | None) -> jax.Array:
    finite = jnp.isfinite(rewards)
    return finite if valid is None else finite & (jnp.asarray(valid) > 0)


def _centred(rewards: jax.Array, valid: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """Valid rewards minus their mean over `axis`, invalid ones 0; and the count of valid ones."""
    rewards = jnp.asarray(rewards, jnp.float32)
    count = valid.sum(axis, keepdims=True)
    # Shifting by the least reward first makes equal rewards differ from their mean by exactly 0.
    least = jnp.where(valid, rewards, jnp.inf).min(axis, keepdims=True)
    shifted = jnp.where(valid, rewards - least, 0)
    mean = shifted.sum(axis, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(valid, shifted - mean, 0), count


def _deviation(centred: jax.Array, count: jax.Array, axis: int | None, std: str) -> jax.Array:
    if std not in ("population", "sample"):
        raise ValueError(f"std must be 'population', 'sample' or None, not {std!r}")
    degrees = jnp.maximum(count - (std == "sample"), 1)
    return jnp.sqrt((centred**2).sum(axis, keepdims=True) / degrees)


def _scaled(centred: jax.Array, deviation: jax.Array, std: str | None, eps: float) -> jax.Array:
    scale = 1.0 if std is None else deviation + eps
    return jnp.where(deviation > MIN_STD, centred / scale, 0)
