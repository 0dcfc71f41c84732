"""The protocol of an environment: text and messages only, no token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmrl.data import Example
from mmrl.text.chat import Message


@dataclass(frozen=True)
class Observation:
    """What an episode begins with: messages, or text for a model without a chat template."""

    prompt: str | list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Step:
    """What followed a response: messages (or text) to answer, or the end of the episode.

    `reward` is added to the episode's; `metrics` are summed over its steps. `answer` is what a
    reward function should judge, the last that is not None.
    """

    messages: str | Sequence[Message] = ""
    done: bool = False
    reward: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    answer: Any = None


class Environment(Protocol):
    """One episode's world. `close` is called once, however the episode ends.

    All episodes of an example must begin alike: their group is compared.
    """

    async def reset(self, example: Example) -> Observation: ...

    async def step(self, response: str) -> Step: ...

    async def close(self) -> None: ...
