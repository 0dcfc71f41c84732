"""Which prompts are worth drawing, by how often the policy's responses to them were right.

MiniMax-M1 (arXiv 2506.13585) kept mathematics problems with a pass@10 strictly between 0 and 0.9,
for its long stages dropped what the 40K model solved easily, and mixed general tasks gradually into
tasks with rule-based verifiers. How fast is not stated.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmrl.data.pipeline import DataConfig
from mmrl.data.records import Example


@dataclass(frozen=True)
class CurriculumConfig:
    """Passes over prompts whose measured pass rate is outside `low` < rate < `high`.

    low, high  None is no bound; (None, 0.9) drops what is solved and keeps what is hard, (0.0, 0.9)
               is M1's difficulty filter
    after      responses of a prompt before its rate counts
    forget     what earlier responses count at each new measurement, in (0, 1]: below 1 the rate
               follows the policy
    revisit    share of the passed-over prompts that is drawn and measured all the same
    """

    low: float | None = None
    high: float | None = None
    after: int = 10
    forget: float = 0.9
    revisit: float = 0.05

    def __post_init__(self):
        low, high = self.low or 0.0, 1.0 if self.high is None else self.high
        if not 0 <= low < high <= 1:
            raise ValueError(f"curriculum: 0 <= low < high <= 1 must hold, not {low} and {high}")
        if self.after < 1 or not 0 < self.forget <= 1 or not 0 <= self.revisit <= 1:
            raise ValueError(
                "curriculum: after must be at least 1, forget in (0, 1], revisit in [0, 1]; got "
                f"{self.after}, {self.forget} and {self.revisit}"
            )

    @property
    def measures(self) -> bool:
        return self.low is not None or self.high is not None

    def wants(self, rate: float) -> bool:
        """Whether a prompt with this pass rate is worth its responses."""
        above = self.low is None or rate > self.low
        return above and (self.high is None or rate < self.high)


@dataclass(frozen=True)
class DataPart:
    """A further source of prompts beside the main one, whose weight is 1.

    Its weight rises linearly from 0 before step `begins` to `weight` from step `full` on. `reward`
    is the import path of the reward of its prompts; None is the run's.
    """

    data: DataConfig
    weight: float = 1.0
    begins: int = 0
    full: int = 0
    reward: str | None = None

    def __post_init__(self):
        if not self.weight > 0 or not 0 <= self.begins <= self.full:
            raise ValueError(
                "a part of the data needs a positive weight and 0 <= begins <= full, got "
                f"{self.weight}, {self.begins} and {self.full}"
            )

    def weight_at(self, step: int) -> float:
        if step >= self.full:
            return self.weight
        return self.weight * max(step - self.begins, 0) / (self.full - self.begins)


def prompt_id(example: Example) -> str:
    """16 hexadecimal digits that name the prompt and its label, whatever order they come in."""
    text = json.dumps([example.prompt, example.label], default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class PassRates:
    """Counts of right and of all responses by prompt, both of which fade by `forget`."""

    def __init__(self, config: CurriculumConfig, counts: dict[str, list[float]] | None = None):
        self.config = config
        self.counts = counts or {}

    def observe(self, outcomes: Iterable[tuple[str, list[float]]]) -> None:
        """Adds the outcomes, 1 or 0 a response, of prompts by their ids."""
        for name, solved in outcomes:
            right, seen = self.counts.get(name, (0.0, 0.0))
            forget = self.config.forget
            self.counts[name] = [right * forget + sum(solved), seen * forget + len(solved)]

    def rate(self, name: str) -> float | None:
        """The pass rate, None while fewer than `after` responses count."""
        right, seen = self.counts.get(name, (0.0, 0.0))
        return right / seen if seen >= self.config.after else None

    def admits(self, name: str, draw: int) -> bool:
        """Whether draw number `draw` of the data, which is this prompt, is to be used."""
        rate = self.rate(name)
        if rate is None or self.config.wants(rate):
            return True
        digest = hashlib.blake2b(f"{name}:{draw}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.config.revisit * 2**64

    def metrics(self) -> dict[str, float]:
        """`curriculum/measured` prompts, and the share of them that is `curriculum/passed_over`."""
        rates = [rate for name in self.counts if (rate := self.rate(name)) is not None]
        out = sum(not self.config.wants(rate) for rate in rates)
        share = out / max(len(rates), 1)
        return {"curriculum/measured": len(rates), "curriculum/passed_over": share}

    def state(self) -> dict[str, Any]:
        return {name: list(counts) for name, counts in self.counts.items()}
