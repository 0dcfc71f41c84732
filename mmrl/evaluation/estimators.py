"""avg@n and pass@k with bootstrap intervals over problems."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CHUNK = 2**22  # resampled values that are in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def pass_at_k(n: int, correct: np.ndarray, k: int) -> np.ndarray:
    """P(at least one of k responses is correct) for each problem, of n of which c are, unbiased.

        1 - C(n-c, k) / C(n, k) = 1 - prod_{j<k} (1 - c / (n - j))

    as a sum of log1p, which keeps small probabilities (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    Args: correct [P] of integers from 0 to n. Returns [P] float64. Raises ValueError for a k that
    is not in 1 … n, since then no unbiased estimator exists.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} responses to a problem, and has {n}")
    left = n - np.arange(k)
    share = np.minimum(np.asarray(correct, np.float64)[:, None] / left, 1.0)
    with np.errstate(divide="ignore"):
        return -np.expm1(np.log1p(-share).sum(axis=1))


def bootstrap(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Estimate:
    """The mean of one value a problem [P], and its percentile bootstrap interval (Efron 1979).

    Problems are drawn with replacement, so the interval says how the mean would move with other
    problems of the same kind, the noise of sampling responses included. Where all values are
    equal (nothing solved, everything solved) it has no width, which is too narrow.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("an estimate needs at least one problem")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    means = [
        values[rng.integers(len(values), size=(min(rows, resamples - start), len(values)))].mean(1)
        for start in range(0, resamples, rows)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def paired_bootstrap(values: np.ndarray, baseline: np.ndarray, **settings) -> Estimate:
    """The mean difference on the same problems, [P] each in one order, and its interval.

    The difficulty of a problem, which both share, cancels: the interval is that of the gain, often
    far narrower than two intervals beside each other suggest.
    """
    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if values.shape != baseline.shape:
        raise ValueError(f"{len(values)} problems cannot be paired with {len(baseline)}")
    return bootstrap(values - baseline, **settings)
