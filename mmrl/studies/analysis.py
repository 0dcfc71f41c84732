"""What the metrics of a study's runs say: curves, steps to a score, clipping by probability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrl.evaluation.estimators import RESAMPLES
from mmrl.report.metrics import read_metrics


@dataclass(frozen=True)
class Curve:
    """A metric over the steps of several runs: steps [T] and values [N, T], a row a seed."""

    steps: np.ndarray
    values: np.ndarray

    def mean(self) -> np.ndarray:
        return self.values.mean(axis=0)

    def interval(self, seed: int = 0, level: float = 0.95) -> np.ndarray:
        """Lower and upper bounds [2, T] of the mean by the percentile bootstrap over seeds."""
        means = self.resampled(np.random.default_rng(seed))
        tail = (1 - level) / 2
        return np.quantile(means, [tail, 1 - tail], axis=0)

    def resampled(self, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
        """Means [R, T] over runs drawn with replacement, whole runs at a time."""
        runs = len(self.values)
        counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
        return counts @ self.values / runs


def read_curve(workdirs: Sequence[Path], name: str) -> Curve:
    """The metric `name` of the RL phase of finished runs, at the steps that have it in all."""
    runs = [
        {row["step"]: row[name] for row in read_metrics(workdir) if row["phase"] == "rl"
         and row.get(name) is not None}
        for workdir in workdirs
    ]  # fmt: skip
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    return Curve(np.asarray(steps), np.asarray([[run[step] for step in steps] for run in runs]))


def area(curve: Curve) -> np.ndarray:
    """Mean height of each run's curve from its first step to its last [N], by trapezoids."""
    span = curve.steps[-1] - curve.steps[0]
    return np.trapezoid(curve.values, curve.steps, axis=1) / span


def steps_to(steps: np.ndarray, values: np.ndarray, score: float) -> float:
    """First step at which the curve, linear between its points, is at `score`; inf if never."""
    reached = np.flatnonzero(values >= score)
    if not len(reached):
        return math.inf
    after = reached[0]
    if after == 0:
        return float(steps[0])
    low, high = values[after - 1], values[after]
    part = (score - low) / (high - low)
    return float(steps[after - 1] + part * (steps[after] - steps[after - 1]))


@dataclass(frozen=True)
class Race:
    """Steps to a reference's final score, and as a share of the reference's own steps to it.

    Each is (point, lower, upper bound of the 95% interval); inf where the score is not reached.
    """

    steps: tuple[float, float, float]
    share: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        """Whether half the reference's steps suffice.

        "reproduced": the interval of the share ends at or below a half. "partly": it ends below 1,
        so that the runner is faster, by less or less surely than twofold. Else "not reproduced".
        """
        high = self.share[2]
        return "reproduced" if high <= 0.5 else "partly" if high < 1 else "not reproduced"


def race(runner: Curve, reference: Curve, *, seed: int = 0, resamples: int = RESAMPLES) -> Race:
    """How soon `runner`'s mean curve has the last score of `reference`'s mean curve.

    The reference's own steps are to the first time that it has that score, which a plateau puts
    before its end. The seeds of both are resampled, for the score itself is uncertain.
    """
    rng = np.random.default_rng(seed)
    own = reference.resampled(rng, resamples)
    other = own if runner is reference else runner.resampled(rng, resamples)

    def steps_and_share(mean: np.ndarray, of_reference: np.ndarray) -> tuple[float, float]:
        score = of_reference[-1]
        steps = steps_to(runner.steps, mean, score)
        return steps, steps / max(steps_to(reference.steps, of_reference, score), 1.0)

    point = steps_and_share(runner.mean(), reference.mean())
    found = np.asarray([steps_and_share(*means) for means in zip(other, own, strict=True)])
    bounds = np.quantile(found, [0.025, 0.975], axis=0, method="inverted_cdf")
    steps, share = zip(point, *bounds.tolist(), strict=True)
    return Race(steps, share)


def by_probability(workdirs: Sequence[Path], bins: int) -> dict[str, np.ndarray]:
    """Of the bins of the behaviour probability [bins], over all RL steps of all runs.

    `tokens` and `gradient` are a bin's shares of all tokens and of the whole |dloss/dlogprob|;
    `clipped` and `dropped` are shares of the bin's own tokens, nan where it has none.
    """
    rows = [row for workdir in workdirs for row in read_metrics(workdir)]
    sums = {
        name: np.asarray(
            [sum(row.get(f"probability/{name}/{i}", 0.0) for row in rows) for i in range(bins)]
        )
        for name in ("tokens", "clipped", "dropped", "gradient")
    }
    with np.errstate(invalid="ignore"):
        return {
            "tokens": sums["tokens"] / sums["tokens"].sum(),
            "clipped": sums["clipped"] / sums["tokens"],
            "dropped": sums["dropped"] / sums["tokens"],
            "gradient": sums["gradient"] / sums["gradient"].sum(),
        }
