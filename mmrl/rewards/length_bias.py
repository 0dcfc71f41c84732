"""Whether a judge comes to reward length: what the MiniMax-M1 report monitors during training.

Its section 4 on generative reward models: length bias is watched online, by whether the policy's
answers grow without its success growing, and the reward is then calibrated anew. How it measures
that is not stated; these measures are mmrl's own.
"""

from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 50
SIGNIFICANT = 2.0  # standard errors


def length_correlation(rewards: np.ndarray, lengths: np.ndarray) -> float:
    """Pearson's correlation of reward and length within groups, [P, G] both; 0 without spread.

    Each is centred on its group's mean first: a hard prompt has long responses and low rewards,
    which says nothing about the judge.
    """
    rewards = np.asarray(rewards, np.float64)
    lengths = np.asarray(lengths, np.float64)
    rewards = rewards - rewards.mean(-1, keepdims=True)
    lengths = lengths - lengths.mean(-1, keepdims=True)
    spread = np.sqrt((rewards**2).sum() * (lengths**2).sum())
    return float((rewards * lengths).sum() / spread) if spread > 1e-9 else 0.0


def rewards_length(
    rows: Sequence[Mapping[str, float]],
    *,
    reward: str = "reward/mean",
    length: str = "response/length_mean",
    solved: str = "reward/solved",
    window: int = WINDOW,
) -> bool:
    """Whether in the last `window` rows reward and length rose and the solve rate did not.

    `rows` are steps as in `metrics.jsonl`, `reward` the judge's metric, such as
    `reward/judge.grade`, and `solved` one that it has no part in. A metric rose if the slope of
    its least-squares line is more than two standard errors above 0. Fewer than half a window of
    rows that have all three say nothing: False.
    """
    names = (reward, length, solved)
    kept = [row for row in rows if all(name in row for name in names)][-window:]
    if len(kept) < max(4, window // 2):
        return False
    rose = {name: _slope_errors([row[name] for row in kept]) > SIGNIFICANT for name in names}
    return rose[reward] and rose[length] and not rose[solved]


def _slope_errors(values: Sequence[float]) -> float:
    """The slope of the least-squares line, in its standard errors; 0 for a constant."""
    y = np.asarray(values, np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    y = y - y.mean()
    slope = (x * y).sum() / (x * x).sum()
    error = np.sqrt(((y - slope * x) ** 2).sum() / (len(y) - 2) / (x * x).sum())
    if abs(slope) < 1e-12:
        return 0.0
    return float(slope / max(error, 1e-12))
