"""The whole loss from one config: objective, KL to a reference, entropy bonus, truncated IS."""

import dataclasses
import difflib
import inspect
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmrl.rl.aggregation import AGGREGATIONS, token_weights
from mmrl.rl.kl import KL_ESTIMATORS, kl_penalty
from mmrl.rl.metrics import Metrics, by_probability, token_mean
from mmrl.rl.objectives import OBJECTIVES
from mmrl.rl.ratios import truncated_importance_weights

# The M1 paper gives no number. Ratios up to 5 are ScaleRL's and slime's choice.
CISPO_EPS_HIGH = 4.0
BOUNDS = ("eps_high", "eps_low", "mask_eps_high", "mask_eps_low")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Options of `policy_loss`.

    Attributes:
        name: a key of `mmrl.rl.objectives.OBJECTIVES`.
        eps_high, eps_low: bounds as deltas from 1; None is no bound; "default" is the objective's
            own (cispo: 4.0 and None).
        mask_eps_high, mask_eps_low: cispo's unified mask; None is off.
        dual_clip: ppo, grpo, dapo and dr_grpo: greatest ratio with a gradient where A < 0.
        aggregation: see `token_weights`; None is the objective's own.
        max_length: tokens, denominator of "constant"; None is T.
        sample_fraction: share of "sample" in "combined".
        kl_kind, kl_coefficient: penalty towards a reference, see `mmrl.rl.kl`; 0 is off.
        entropy_coefficient: weight of the entropy bonus; 0 is off.
        tis_low, tis_high: bounds, as ratios, of the weights that correct for the sampler;
            `tis_high` None is off.
        probability_bins: edges, rising between 0 and 1, of the behaviour probabilities by which
            `mmrl.rl.metrics.by_probability` tells what is clipped; () does not. Not for gspo.

    Raises:
        ValueError: an unknown name, a value out of range, or an option the objective has not.
    """

    name: str = "cispo"
    eps_high: float | Literal["default"] | None = "default"
    eps_low: float | Literal["default"] | None = "default"
    mask_eps_high: float | None = None
    mask_eps_low: float | None = None
    dual_clip: float | None = None
    aggregation: str | None = None
    max_length: int | None = None
    sample_fraction: float = 0.5
    kl_kind: str = "k3"
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    tis_low: float = 0.0
    tis_high: float | None = None
    probability_bins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require_known("name", self.name, OBJECTIVES)
        _require_known("kl_kind", self.kl_kind, KL_ESTIMATORS)
        if self.aggregation is not None:
            _require_known("aggregation", self.aggregation, AGGREGATIONS)
        for field in BOUNDS:
            value = getattr(self, field)
            if isinstance(value, str) and value != "default":
                raise ValueError(f'{field} must be a number, None or "default", not {value!r}')
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(
                    f"{field} is a delta from ratio 1 and must be > 0, not {value}: a greatest "
                    f"ratio of 5 is eps_high=4, no bound is None"
                )
        _require(
            self.dual_clip is None or self.dual_clip > 1, "dual_clip is a ratio and must be > 1"
        )
        _require(self.max_length is None or self.max_length > 0, "max_length must be > 0 tokens")
        _require(0 <= self.sample_fraction <= 1, "sample_fraction must be in [0, 1]")
        _require(self.kl_coefficient >= 0, "kl_coefficient must be >= 0")
        _require(self.entropy_coefficient >= 0, "entropy_coefficient must be >= 0")
        tis_in_order = self.tis_high is None or 0 <= self.tis_low < self.tis_high
        _require(tis_in_order, "tis bounds must satisfy 0 <= tis_low < tis_high")
        edges = (0.0, *self.probability_bins, 1.0)
        rising = all(low < high for low, high in zip(edges, edges[1:], strict=False))
        _require(rising, "probability_bins must rise between 0 and 1")
        tokenwise = self.name != "gspo" or not self.probability_bins
        _require(tokenwise, "probability_bins are of tokens, and gspo clips whole sequences")
        accepted = _keywords(self.name)
        for option in self.options():
            _require(option in accepted, f"objective {self.name!r} has no option {option}")

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the objective; those left to its defaults are absent."""
        options = {field: getattr(self, field) for field in ("eps_high", "eps_low")}
        if self.name == "cispo" and self.eps_high == "default":
            options["eps_high"] = CISPO_EPS_HIGH
        options = {field: value for field, value in options.items() if value != "default"}
        optional = ("mask_eps_high", "mask_eps_low", "dual_clip")
        given = {field: getattr(self, field) for field in optional}
        return options | {field: value for field, value in given.items() if value is not None}


def batch_weights(config: ObjectiveConfig, mask: jax.Array) -> jax.Array:
    """Token weights [P, G, T] of a whole optimizer batch, to be sliced into its micro-batches."""
    aggregation = config.aggregation or _keywords(config.name)["aggregation"].default
    return token_weights(
        mask,
        aggregation,
        max_length=config.max_length,
        sample_fraction=config.sample_fraction,
    )


def policy_loss(
    config: ObjectiveConfig,
    logprobs: jax.Array,
    behaviour_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    old_logprobs: jax.Array | None = None,
    reference_logprobs: jax.Array | None = None,
    entropy: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Scalar loss and metrics; arrays as in `mmrl.rl.objectives`, all further ones [..., T].

    loss = objective + kl_coefficient * sum(weights * kl) - entropy_coefficient * sum(weights * H)

    weights: the slice of `batch_weights` for this micro-batch; None if it is the whole batch.
    old_logprobs: the trainer's own score of the tokens at the parameters that sampled them. If
        given it is pi_old in the ratio, and behaviour_logprobs serve the `tis_high` correction.
    reference_logprobs: of the KL's reference. entropy: of the policy at each position, for the
        bonus and the metric `policy/entropy`.

    Raises:
        ValueError: the config asks for a term whose array is missing.
    """
    weights = batch_weights(config, mask) if weights is None else weights
    policy_weights = weights
    extra: Metrics = {}
    if config.tis_high is not None:
        trainer = _given(old_logprobs, "tis_high needs old_logprobs, the trainer's own score")
        bounds = dict(low=config.tis_low, high=config.tis_high)
        tis = truncated_importance_weights(trainer, behaviour_logprobs, mask, **bounds)
        policy_weights = weights * tis
        extra["tis/mean"] = token_mean(tis, mask)

    old = behaviour_logprobs if old_logprobs is None else old_logprobs
    objective = OBJECTIVES[config.name]
    options = config.options() | {"weights": policy_weights}
    loss, metrics = objective(logprobs, old, advantages, mask, **options)
    if config.probability_bins:

        def of_tokens(logprobs, mask):
            return objective(logprobs, old, advantages, mask, **options)

        fixed = jax.lax.stop_gradient(logprobs)
        extra |= by_probability(of_tokens, fixed, old, mask, config.probability_bins)

    if config.kl_coefficient > 0:
        reference = _given(reference_logprobs, "kl_coefficient > 0 needs reference_logprobs")
        kl = kl_penalty(logprobs, reference, config.kl_kind, mask=mask)
        extra["loss/kl"] = config.kl_coefficient * (weights * kl).sum()
        extra["kl/reference"] = token_mean(kl, mask)
        loss = loss + extra["loss/kl"]
    if entropy is not None:
        extra["policy/entropy"] = token_mean(entropy, mask)
    if config.entropy_coefficient > 0:
        entropy = _given(entropy, "entropy_coefficient > 0 needs the policy's entropy")
        kept = jnp.where(mask > 0, entropy, 0)
        extra["loss/entropy"] = -config.entropy_coefficient * (weights * kept).sum()
        loss = loss + extra["loss/entropy"]
    return loss, metrics | jax.lax.stop_gradient(extra | {"loss/total": loss})


def _keywords(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(OBJECTIVES[name]).parameters)


def _given(array: jax.Array | None, message: str) -> jax.Array:
    if array is None:
        raise ValueError(message)
    return array


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_known(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, 1, cutoff=0)[0]
        raise ValueError(f"{field} {value!r} is unknown; did you mean {near!r}? One of {[*known]}")
