"""What a config says of episodes: the environment, limits, and what each ending counts."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrl.data import Example, Status
from mmrl.environments.environment import Environment
from mmrl.errors import UserError, nearest
from mmrl.rewards.runner import resolve


@dataclass(frozen=True)
class EnvironmentConfig:
    """`path` is the import path of `make(example, **settings) -> Environment`.

    It is called once an episode and should be cheap: what takes long belongs in `reset`, and what
    episodes share in a cached function of its module.
    """

    path: str
    settings: dict[str, Any] = field(default_factory=dict)


def find_environment(config: EnvironmentConfig) -> Callable[[Example], Environment]:
    """Raises `UserError` for a path that leads nowhere and for settings that `make` refuses."""
    make = resolve(config.path, "environment")
    try:
        inspect.signature(make).bind(Example(""), **config.settings)
    except TypeError as error:
        raise UserError(
            f"environment {config.path} with the settings {config.settings}: {error}"
        ) from None
    return functools.partial(make, **config.settings)


@dataclass(frozen=True)
class EpisodeLimits:
    """Where an episode ends unasked, each with a `Status` of its own.

    `turns` responses (TURN_LIMIT), `turn_tokens` in one of them (TURN_TOKEN_LIMIT), `tokens` after
    the prompt (TRUNCATED), `tool_seconds` of one step of the environment (TOOL_TIME_LIMIT),
    `seconds` in all (TIME_LIMIT).
    """

    turns: int = 16
    turn_tokens: int = 1024
    tokens: int = 8192
    tool_seconds: float = 60.0
    seconds: float = 600.0

    def __post_init__(self):
        for limit in dataclasses.fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"{limit.name} must be positive: {getattr(self, limit.name)}")


@dataclass(frozen=True)
class StatusRule:
    """What an ending means for training.

    reward  in place of the judged one; None leaves that
    counts  "loss": the sample is trained on; "mean": it counts in its group's mean and spread, and
            is not trained on; "nothing": the group is compared without it
    """

    reward: float | None = None
    counts: Literal["loss", "mean", "nothing"] = "loss"


_LEFT_OUT = StatusRule(counts="nothing")
STATUSES: Mapping[str, StatusRule] = {
    Status.COMPLETED.value: StatusRule(),
    Status.TRUNCATED.value: StatusRule(),
    Status.REPETITION.value: StatusRule(),
    Status.TURN_LIMIT.value: StatusRule(),
    Status.TURN_TOKEN_LIMIT.value: StatusRule(),
    Status.TOOL_TIME_LIMIT.value: _LEFT_OUT,
    Status.TIME_LIMIT.value: _LEFT_OUT,
    Status.ABORTED.value: _LEFT_OUT,
    Status.FAILED.value: _LEFT_OUT,
}


@dataclass(frozen=True)
class EpisodeConfig:
    """How episodes are played, and which are trained on.

    limits    where they end unasked; `limits.tokens` is the padded length of a rollout
    rows      episodes that decode together; others wait for a row, and only then begin
    overlap   false: a turn waits for all environments, so that a run that is continued is the same
              run. true: others decode while an environment works; which rows are read together, and
              so the rounding, then depends on the clock. One process only
    statuses  {ending: rule} where not the default: an ending that is the policy's doing (completed,
              truncated, turn_limit, turn_token_limit) is trained on with its reward as judged; one
              that may not be (tool_time_limit, time_limit, aborted, failed) counts nothing
    """

    limits: EpisodeLimits = EpisodeLimits()
    rows: int = 64
    overlap: bool = False
    statuses: dict[str, StatusRule] = field(default_factory=lambda: dict(STATUSES))

    def __post_init__(self):
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")
        for name in self.statuses:
            if name not in STATUSES:
                raise ValueError(f"statuses: no status {name!r}.{nearest(name, STATUSES)}")

    def rule(self, status: Status) -> StatusRule:
        """The rule of an ending."""
        return self.statuses.get(status.value) or STATUSES.get(status.value, StatusRule())
