"""How well a judge agrees with the truth, on responses for which the truth is known.

MiniMax-M1 (arXiv 2506.13585) checks its generative rewards against ground truth and recalibrates
them when they come to favour length; how it measures either is not stated. `mmrl.rewards.judge` is
such a reward, and `mmrl.rewards.length_bias` watches it during training.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Calibration:
    """A judge's rewards of N responses beside the truth.

    right        share of responses that are right
    agreement    share on which reward >= `threshold` says what the truth says
    kappa        Cohen's: agreement beyond that of chance, 1 for all, 0 for none
    ranking      how often a right response has a higher reward than a wrong one, ties as half;
                 1 orders all, 0.5 none; NaN where all are right or all wrong
    length_bias  Pearson's correlation of reward and length among responses to one problem that are
                 equally right: what length earns that truth does not; 0 without spread
    table        {reward: (responses, share of them that are right)}
    """

    responses: int
    right: float
    threshold: float
    agreement: float
    kappa: float
    ranking: float
    length_bias: float
    table: dict[float, tuple[int, float]]


def calibration(
    rewards: ArrayLike,
    right: ArrayLike,
    lengths: ArrayLike,
    problems: Sequence[Hashable],
    threshold: float = 0.5,
) -> Calibration:
    """Compares rewards [N] with whether the responses are right [N], of these lengths [N].

    Raises ValueError for no responses or arrays of different lengths.
    """
    r, length = np.asarray(rewards, np.float64), np.asarray(lengths, np.float64)
    truth = np.asarray(right, bool)
    if not len(r) or not len(r) == len(truth) == len(length) == len(problems):
        raise ValueError("calibration needs as many rewards as truths, lengths and problems, >= 1")
    says = r >= threshold
    agreement = float(np.mean(says == truth))
    chance = says.mean() * truth.mean() + (1 - says.mean()) * (1 - truth.mean())
    return Calibration(
        responses=len(r),
        right=float(truth.mean()),
        threshold=threshold,
        agreement=agreement,
        kappa=float((agreement - chance) / (1 - chance)) if chance < 1 else 1.0,
        ranking=ranking(r, truth),
        length_bias=length_bias(r, length, list(zip(problems, truth.tolist(), strict=True))),
        table={
            float(value): (int((r == value).sum()), float(truth[r == value].mean()))
            for value in np.unique(r)
        },
    )


def ranking(rewards: np.ndarray, right: np.ndarray) -> float:
    """P(reward of a right response > that of a wrong one) + P(equal) / 2, by ranks (Mann-Whitney).

    NaN where one kind is missing.
    """
    good, bad = int(right.sum()), int((~right).sum())
    if not good or not bad:
        return float("nan")
    _, inverse, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * bad))


def length_bias(rewards: np.ndarray, lengths: np.ndarray, groups: Sequence[Hashable]) -> float:
    """Pearson's correlation of rewards and lengths [N], both centred on their group's mean."""
    _, index = np.unique([str(group) for group in groups], return_inverse=True)
    counts = np.bincount(index)

    def centred(x: np.ndarray) -> np.ndarray:
        return x - (np.bincount(index, weights=x) / counts)[index]

    x, y = centred(rewards), centred(lengths)
    spread = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / spread) if spread > 1e-9 else 0.0
