"""Response lengths in stages: the next when the policy has learned to use the present one.

MiniMax-M1 (arXiv 2506.13585) went from 40K tokens over 48K, 56K, 64K and 72K to 80K. A stage ended
when the perplexity of what the policy generates had converged and the 99th percentile of its
lengths approached the limit. Late stages collapsed into patterns; against that the paper has the
early stop (`mmrl.rollout.sampling.RepetitionStop`), a combined sample-level loss and token-level
normalisation (aggregation "combined"), and lower bounds for the gradient's norm and for the
importance weight. It gives no numbers for any of these: the thresholds here are mmrl's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

M1_LENGTHS = (40_960, 49_152, 57_344, 65_536, 73_728, 81_920)


@dataclass(frozen=True)
class Stage:
    """What a stage sets: the limit of response tokens, and what else changes; None leaves it.

    eps_high     of the objective, a delta from 1
    aggregation  of the objective, see `mmrl.rl.aggregation`
    clip_norm    of the optimizer
    """

    max_new_tokens: int
    eps_high: float | None = None
    aggregation: str | None = None
    clip_norm: float | None = None


@dataclass(frozen=True)
class LengthStages:
    """The stages, none for one limit throughout, and when the next begins.

    Of the last `window` steps of a stage, the mean perplexities of the earlier and the later half
    differ by at most `perplexity_change` of the former, and the mean 99th percentile of the later
    half's lengths is at least `length_share` of the limit.
    """

    stages: tuple[Stage, ...] = ()
    window: int = 20
    perplexity_change: float = 0.02
    length_share: float = 0.9

    def __post_init__(self):
        lengths = [stage.max_new_tokens for stage in self.stages]
        if lengths != sorted(set(lengths)) or any(length < 1 for length in lengths):
            raise ValueError(f"stages must have growing max_new_tokens, got {lengths}")
        if self.window < 2 or self.perplexity_change < 0 or not 0 < self.length_share <= 1:
            raise ValueError(
                "length_stages needs a window of at least 2 steps, perplexity_change of at least 0 "
                "and length_share in (0, 1]"
            )


@dataclass(frozen=True)
class StageState:
    """The stage, and of its last steps the perplexity and the 99th percentile of lengths."""

    index: int = 0
    perplexities: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "StageState":
        """From the JSON of `vars`."""
        return cls(saved["index"], tuple(saved["perplexities"]), tuple(saved["lengths"]))


def advance(
    config: LengthStages, state: StageState, perplexity: float, length_p99: float
) -> StageState:
    """The state after a step: with the step's figures, or at the start of the next stage."""
    perplexities = (*state.perplexities, perplexity)[-config.window :]
    lengths = (*state.lengths, length_p99)[-config.window :]
    is_last = state.index + 1 >= len(config.stages)
    if is_last or len(lengths) < config.window:
        return StageState(state.index, perplexities, lengths)
    limit = config.stages[state.index].max_new_tokens
    long_enough = _halves(lengths)[1] >= config.length_share * limit
    if long_enough and converged(perplexities, config.perplexity_change):
        return StageState(state.index + 1)
    return StageState(state.index, perplexities, lengths)


def converged(perplexities: Sequence[float], change: float) -> bool:
    """Whether the means of both halves differ by at most this share of the first's."""
    before, after = _halves(perplexities)
    return abs(after - before) <= change * before


def _halves(values: Sequence[float]) -> tuple[float, float]:
    middle = len(values) // 2
    return float(np.mean(values[:middle])), float(np.mean(values[middle:]))
