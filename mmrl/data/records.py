"""The records of one task: what the data gives (`Example`) and what a reward judges (`Sample`)."""

import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from mmrl.errors import UserError
from mmrl.text import Tokenizer


class Status(int, enum.Enum):
    """How a response or an episode ended: an int in arrays, slime's string as `.value`.

    The limits that only episodes have (`mmrl.environments.EpisodeLimits`) and REPETITION, ended
    early by `mmrl.rollout.sampling.RepetitionStop`, are not slime's.

    `Status(1)` and `Status("completed")` are both `Status.COMPLETED`.
    """

    PENDING = 0, "pending"
    COMPLETED = 1, "completed"
    TRUNCATED = 2, "truncated"
    ABORTED = 3, "aborted"
    FAILED = 4, "failed"
    TURN_LIMIT = 5, "turn_limit"
    TURN_TOKEN_LIMIT = 6, "turn_token_limit"
    TOOL_TIME_LIMIT = 7, "tool_time_limit"
    TIME_LIMIT = 8, "time_limit"
    REPETITION = 9, "repetition"

    def __new__(cls, code: int, name: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = name
        return member

    @classmethod
    def _missing_(cls, value: object) -> "Status | None":
        return next((member for member in cls if int(member) == value), None)


@dataclass(frozen=True)
class Example:
    """One row of the data.

    prompt    text, or chat messages {"role": …, "content": …}
    label     what the reward compares with, and the target of the supervised warm start
    metadata  anything else the reward needs
    tools     tool descriptions for the prompt
    """

    prompt: str | list[dict[str, Any]]
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None


def prompt_tokens(example: Example, tokenizer: Tokenizer) -> list[int]:
    """Ids of the prompt: text as it is, messages and tools as the tokenizer's chat template says.

    Raises `UserError` for messages that the template refuses or without a template.
    """
    if isinstance(example.prompt, str):
        return tokenizer.encode(example.prompt)
    if tokenizer.chat_template is None:
        raise UserError(
            "the prompt is a list of messages and the tokenizer has no chat template: set "
            f"tokenizer.template of a PretrainedTokenizer. The messages: {example.prompt}"
        )
    text = tokenizer.chat_template.render(example.prompt, example.tools)
    return tokenizer.encode(text, special=True)


@dataclass
class Sample:
    """One response to one prompt, with slime's field names (Sample of slime/utils/types.py).

    tokens             prompt and response token ids
    response_length    R, number of response tokens
    loss_mask          [R], 1 where a response token counts in the loss
    rollout_log_probs  [R], of the distribution that the token was drawn from
    remove_sample      set by a reward: the sample counts in its group and not in the loss
    solved             whether its reward says so, once it has one; mmrl's own

    What functions written for slime read beside these is here too; slime's fields of its own
    engines (routed experts, weight versions, speculation) are not.
    """

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: Any = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    remove_sample: bool = False
    solved: bool | None = None
    train_metadata: dict[str, Any] | None = None

    Status: ClassVar = Status

    def get_reward_value(self, args: Any) -> Any:
        """The reward, or of a dict of rewards the one that slime's --reward-key names."""
        return self.reward[args.reward_key] if isinstance(self.reward, dict) else self.reward

    @property
    def effective_response_length(self) -> int:
        """Response tokens that count in the loss."""
        return self.response_length if self.loss_mask is None else sum(self.loss_mask)

    def append_response_tokens(
        self,
        args: Any,
        tokens: list[int],
        log_probs: list[float] | None = None,
        trainable: bool = True,
        meta_info: dict[str, Any] | None = None,
        text: str | None = None,
    ) -> None:
        """What the model drew next, or with `trainable` false what came back."""
        self.tokens = [*self.tokens, *tokens]
        self.response_length += len(tokens)
        self.loss_mask = [*(self.loss_mask or []), *[int(trainable)] * len(tokens)]
        kept = [0.0] * len(tokens) if log_probs is None else log_probs
        self.rollout_log_probs = [*(self.rollout_log_probs or []), *kept]
        self.response += text or ""
        finish = (meta_info or {}).get("finish_reason", {}).get("type")
        if trainable and finish in ("stop", "length"):
            self.status = Status.COMPLETED if finish == "stop" else Status.TRUNCATED

    def to_dict(self) -> dict[str, Any]:
        """The fields, with the status as its string."""
        return vars(self) | {"status": self.status.value}
