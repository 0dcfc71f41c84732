"""What an objective reports about its batch, and how the reports of micro-batches merge."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mmrl.rl.ratios import ratio_bounds

Metrics = dict[str, jax.Array]


def token_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values` over the tokens that `mask` keeps, 0 if there are none."""
    keep = mask > 0
    return jnp.where(keep, values, 0).sum() / jnp.maximum(keep.sum(), 1)


def probability_correlation(logprobs: jax.Array, others: jax.Array, mask: jax.Array) -> jax.Array:
    """Pearson correlation of exp(logprobs) and exp(others) over the tokens that `mask` keeps.

    MiniMax-M1's measure of sampler against trainer (arXiv 2506.13585, figure 3: 0.987 before its
    float32 head, 0.997 with it). 1 where the probabilities of either do not vary.
    """
    deviations = []
    for values in (logprobs, others):
        probs = jnp.exp(values)
        deviations.append(jnp.where(mask > 0, probs - token_mean(probs, mask), 0))
    x, y = deviations
    scale = jnp.sqrt(jnp.square(x).sum() * jnp.square(y).sum())
    return jnp.where(scale > 0, (x * y).sum() / jnp.where(scale > 0, scale, 1), 1)


def policy_metrics(
    loss: jax.Array,
    ratio: jax.Array,
    token_log_ratio: jax.Array,
    dropped: jax.Array,
    mask: jax.Array,
    *,
    eps_low: float | None = None,
    eps_high: float | None = None,
) -> Metrics:
    """Scalars of one batch; arrays are [..., T].

    `loss/clip_fraction` is the share of tokens with a ratio outside the bounds, whatever the
    advantage, and the sum of its `_high` and `_low` parts. `loss/dropped_fraction` is the share
    that the rule leaves without gradient: none for CISPO without mask bounds. `kl/behaviour`
    estimates KL(pi_old || pi) by k3.
    """
    low, high = ratio_bounds(eps_low, eps_high)
    metrics = {
        "loss/policy": loss,
        "loss/clip_fraction": token_mean((ratio > high) | (ratio < low), mask),
        "loss/clip_fraction_high": token_mean(ratio > high, mask),
        "loss/clip_fraction_low": token_mean(ratio < low, mask),
        "loss/dropped_fraction": token_mean(dropped, mask),
        "ratio/mean": token_mean(ratio, mask),
        "ratio/max": jnp.where(mask > 0, ratio, 0).max(),
        "kl/behaviour": token_mean(jnp.expm1(token_log_ratio) - token_log_ratio, mask),
        "tokens/loss": (mask > 0).sum().astype(jnp.float32),
    }
    return jax.lax.stop_gradient(metrics)


def by_probability(
    objective: Callable[[jax.Array, jax.Array], tuple[jax.Array, Metrics]],
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    mask: jax.Array,
    edges: Sequence[float],
) -> Metrics:
    """Which tokens an objective clips, silences and learns from, by their behaviour probability.

    `objective(logprobs, mask)` gives (loss, metrics) of `policy_metrics`, token by token: GSPO's
    ratio of a sequence would change with the mask. For bin i, probabilities in
    [edges[i-1], edges[i]), 0 and everything above at the ends:
        probability/tokens/i     share of the batch's tokens
        probability/clipped/i    share of the batch's tokens, in the bin and out of bounds
        probability/dropped/i    the same without gradient although they have an advantage
        probability/gradient/i   mean over the batch's tokens of |dloss/dlogprob| in the bin
    Over all bins they sum to 1, `loss/clip_fraction`, `loss/dropped_fraction` and the whole
    gradient, and merge over micro-batches as means do; a bin's own share is a quotient of two.
    """
    probability = jnp.exp(jnp.where(mask > 0, behaviour_logprobs, 0))
    bins = jnp.searchsorted(jnp.asarray(edges), probability, side="right")
    inside = (bins == jnp.arange(len(edges) + 1).reshape(-1, *(1,) * mask.ndim)) & (mask > 0)
    metrics = jax.vmap(lambda kept: objective(logprobs, kept)[1])(inside.astype(mask.dtype))
    gradient = jax.grad(lambda logprobs: objective(logprobs, mask)[0])(logprobs)
    share = metrics["tokens/loss"] / jnp.maximum((mask > 0).sum(), 1)
    found = {
        "tokens": share,
        "clipped": share * metrics["loss/clip_fraction"],
        "dropped": share * metrics["loss/dropped_fraction"],
        "gradient": jax.vmap(lambda kept: token_mean(jnp.abs(gradient) * kept, mask))(inside),
    }
    return {
        f"probability/{name}/{i}": value
        for name, values in found.items()
        for i, value in enumerate(values)
    }


def combine_metrics(metrics: Metrics) -> Metrics:
    """Metrics of M micro-batches, each stacked to [M] (as `lax.scan` does), as of one batch.

    By name: `loss/*` and `tokens/*` add up, except fractions; `*max` are maxima; all others are
    means over the `tokens/loss` tokens.
    """
    tokens = metrics["tokens/loss"]

    def combine(key, values):
        if key.startswith(("loss/", "tokens/")) and "fraction" not in key:
            return values.sum()
        if key.endswith("max"):
            return values.max()
        return (values * tokens).sum() / jnp.maximum(tokens.sum(), 1)

    return {key: combine(key, values) for key, values in metrics.items()}
