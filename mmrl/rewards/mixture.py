"""Weighted mixtures of rewards, of which every component is logged.

In a config, `reward` is a tuple of parts:

    reward=(
        WeightedReward("mmrl.rewards.maths:score"),
        WeightedReward("mmrl.rewards.repetition:penalty", 0.5, settings={"ngram": 4}),
    )

and in a Python module `reward = mixture({"mmrl.rewards.maths:score": 1.0, …})` is a reward like any
other, named by its import path.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.data.records import Sample
from mmrl.errors import UserError
from mmrl.rewards.runner import Reward, RewardResult, resolve, to_result


@dataclass(frozen=True)
class WeightedReward:
    """A part of a mixture.

    path      import path of the reward
    weight    what its value counts in the sum; 0 logs it only
    settings  keyword arguments of the reward
    bounds    the least and the greatest value that it may give; values beyond are clipped
    name      of its components; None is its path without `mmrl.rewards.` and with dots
    """

    path: str
    weight: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None
    name: str | None = None

    def __post_init__(self):
        if self.bounds is not None and not self.bounds[0] <= self.bounds[1]:
            raise UserError(f"reward {self.path}: bounds must be (low, high), got {self.bounds}")

    @property
    def label(self) -> str:
        return self.name or self.path.removeprefix("mmrl.rewards.").replace(":", ".")

    def value(self, result: RewardResult) -> float:
        low, high = self.bounds or (result.value, result.value)
        return min(max(result.value, low), high)


RewardSpec = str | Sequence[WeightedReward]


def reward_of(spec: RewardSpec) -> Reward:
    """The reward that a config names: an import path, or the parts of a mixture.

    Raises `UserError` for a path that leads nowhere, settings that the reward does not take, and
    parts of one name.
    """
    return resolve(spec) if isinstance(spec, str) else mixture(spec)


def mixture(parts: Sequence[WeightedReward] | Mapping[str, float]) -> Reward:
    """A reward Σ weight · value, with the values and components of the parts as its components.

    `parts` may be {import path: weight}. Components are `NAME` for the value of a part and
    `NAME/component`; `solved` is that of the first part that gives it. Async parts run beside each
    other. A part that fails fails the sample, and its name stands in the error.
    """
    if isinstance(parts, Mapping):
        parts = [WeightedReward(path, weight) for path, weight in parts.items()]
    labels = [part.label for part in parts]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if not parts or repeated:
        raise UserError(
            f"a mixture of rewards needs parts of different names; give WeightedReward.name to "
            f"one of: {', '.join(repeated)}"
            if parts
            else "a mixture of rewards needs at least one WeightedReward"
        )
    rewards = [_with_settings(part) for part in parts]

    async def reward(sample: Sample) -> dict[str, float]:
        outcomes = [_outcome(part, r, sample) for part, r in zip(parts, rewards, strict=True)]
        return _total(parts, await asyncio.gather(*outcomes))

    return reward


def by_part(rewards: Sequence[Reward]) -> Reward:
    """For each sample the reward of its part of the data, `metadata["part"]` as the index."""
    return lambda sample: rewards[sample.metadata["part"]](sample)


def _with_settings(part: WeightedReward) -> Reward:
    function = resolve(part.path)
    try:
        inspect.signature(function).bind(Sample(), **part.settings)
    except TypeError as error:
        raise UserError(f"reward {part.path} with the settings {part.settings}: {error}") from None
    return functools.partial(function, **part.settings)


async def _outcome(part: WeightedReward, reward: Reward, sample: Sample) -> RewardResult:
    try:
        outcome = reward(sample)
        return to_result(await outcome if isinstance(outcome, Awaitable) else outcome)
    except Exception as error:
        raise RuntimeError(f"{part.label}: {type(error).__name__}: {error}") from error


def _total(parts: Sequence[WeightedReward], results: Sequence[RewardResult]) -> dict[str, float]:
    total, components = 0.0, {}
    for part, result in zip(parts, results, strict=True):
        total += part.weight * part.value(result)
        components[part.label] = result.value
        components |= {
            f"{part.label}/{name}": value
            for name, value in result.components.items()
            if name not in ("reward", "solved")
        }
    solved = [r.components["solved"] for r in results if "solved" in r.components]
    return components | {"reward": total} | ({"solved": solved[0]} if solved else {})
