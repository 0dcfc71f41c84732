"""What a client asks for and what it gets, whichever API it speaks."""

import secrets
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mmrl.rollout.sampling import SamplingConfig

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class Ask:
    """A conversation to continue.

    model, mode    the name that the client used, and the mode that it means
    messages       as OpenAI has them, `content` a text
    tools          as OpenAI describes functions
    call           the tool that must be called, "" any of them, None as the model likes
    parallel       several calls in one turn are welcome
    sampling       its `max_new_tokens` is the client's limit
    stop           texts that end the response
    top_logprobs   how many to list beside each token, None for no log-probabilities
    thinking       the model is asked to think first
    show_thoughts  the client wants to see them
    session, user  the client's names, for the journal; `logged` unless the client objects
    """

    model: str
    mode: str
    messages: list[dict[str, Any]]
    sampling: SamplingConfig
    tools: list[dict[str, Any]] | None = None
    call: str | None = None
    parallel: bool = True
    stop: tuple[str, ...] = ()
    seed: int | None = None
    choices: int = 1
    top_logprobs: int | None = None
    thinking: bool = False
    show_thoughts: bool = True
    stream: bool = False
    usage_in_stream: bool = False
    session: str | None = None
    user: str | None = None
    logged: bool = True
    call_prefix: str = "call"  # of the ids of calls


class Call(NamedTuple):
    """A call of a tool, with the id that its result will name."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class TokenScore:
    """A token, its log-probability under the model at temperature 1, and the best ids with theirs.

    `stops` says that it ended the response and has no text.
    """

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...] = ()
    stops: bool = False


@dataclass(frozen=True)
class Part:
    """What came since the last part; in the last one why it ended, and the stop text if one did."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    tokens: int = 0
    finish: FinishReason | None = None
    stop: str | None = None
    malformed: int = 0


@dataclass
class Reply:
    """All parts of a response so far."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    tokens: int = 0
    finish: FinishReason = "cancelled"
    stop: str | None = None

    def add(self, part: Part) -> None:
        self.reasoning += part.reasoning
        self.content += part.content
        self.calls += part.calls
        self.scores += part.scores
        self.tokens += part.tokens
        self.finish = part.finish or self.finish
        self.stop = part.stop or self.stop


def new_id(prefix: str) -> str:
    """As "call_…", unguessable."""
    return f"{prefix}_{secrets.token_hex(12)}"
