"""The two ways a model is offered to a user: "lightning" answers at once, "pro" thinks first.

MiniMax has modes of these names in its products and none in its checkpoints: no token or template
switches them. The settings here are mmrl's own; training with `TrainConfig.modes` makes one model
that answers by both, as a tag in the prompt asks.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import config as configs
from mmrl.data.records import Example
from mmrl.models.pretrained.orbax import is_run
from mmrl.rollout.sampling import SamplingConfig
from mmrl.text import ChatTemplate

# What a template leaves open where the model is to think, and how M2's history shows no thoughts.
_OPEN, _CLOSE = "<think>\n", "\n</think>\n\n"


@dataclass(frozen=True)
class Mode:
    """How a mode samples, the tokens that a conversation may have, and whether the model thinks.

    `tag` asks a model for the mode that was trained with `TrainConfig.modes`, see `ModeConfig`.
    """

    sampling: SamplingConfig
    context: int
    thinking: bool
    tag: str = ""


MODES = {
    "lightning": Mode(
        SamplingConfig(group_size=1, max_new_tokens=512, temperature=0.8, top_p=0.95),
        context=4096,
        thinking=False,
    ),
    "pro": Mode(
        SamplingConfig(group_size=1, max_new_tokens=8192, temperature=1.0, top_p=0.95, top_k=40),
        context=16_384,
        thinking=True,
    ),
}


def render_prompt(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    mode: Mode,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt for the assistant's next turn.

    Without thinking, templates that know `enable_thinking` (Qwen3) are told so, and a <think> that
    the prompt would leave open (MiniMax-M2) is closed. A model that opens it by itself still may.
    """
    messages = tag_messages(messages, mode.tag) if mode.tag else messages
    prompt = template.render(messages, tools, enable_thinking=mode.thinking)
    return prompt + _CLOSE if prompt.endswith(_OPEN) and not mode.thinking else prompt


@dataclass(frozen=True)
class ModeConfig:
    """A mode as training mixes it with others.

    tag             asks for it: begins a prompt of text, or is the system message of a chat, before
                    what that says already
    max_new_tokens  limit of its responses
    temperature     at which they are drawn, positive
    length_penalty  share of its reward that a solved response of `max_new_tokens` loses; shorter
                    ones lose less in proportion, wrong ones nothing
    form            regular expression that a whole response must match to have a positive reward;
                    a mode that is to think first says here what that looks like. None is any form
    solutions       what the warm start teaches in this mode, in turn; {label} is the label
    """

    tag: str
    max_new_tokens: int
    temperature: float
    length_penalty: float = 0.0
    form: str | None = None
    solutions: tuple[str, ...] = ("{label}",)

    def __post_init__(self):
        if not self.tag or not self.solutions:
            raise ValueError("a mode needs a tag and solutions")
        if self.max_new_tokens < 1 or self.temperature <= 0:
            raise ValueError(
                "a mode needs max_new_tokens of at least 1 and a positive temperature, got "
                f"{self.max_new_tokens} and {self.temperature}"
            )
        if not 0 <= self.length_penalty < 1:
            raise ValueError(f"length_penalty must lie in [0, 1), got {self.length_penalty}")
        try:
            re.compile(self.form or "")
        except re.error as error:
            raise ValueError(f"form {self.form!r} is no regular expression: {error}") from error

    @classmethod
    def of(cls, name: str, tag: str, **changes: Any) -> "ModeConfig":
        """The profile `name` of `MODES` with this tag."""
        sampling = MODES[name].sampling
        profile = dict(max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature)
        return cls(tag, **profile | changes)


def mode_of(path: Path, name: str) -> Mode:
    """The profile `name` for the model at `path`: of a run that trained this mode, as it did."""
    profile = MODES[name]
    if not is_run(path):
        return profile
    fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if name not in fields.get("modes", {}):
        return profile
    trained = configs.from_dict(ModeConfig, fields["modes"][name])
    sampling = dataclasses.replace(
        profile.sampling, max_new_tokens=trained.max_new_tokens, temperature=trained.temperature
    )
    return dataclasses.replace(profile, sampling=sampling, tag=trained.tag)


def has_form(response: str, mode: ModeConfig) -> bool:
    """Whether the response has the form that its mode asks for."""
    return mode.form is None or re.fullmatch(mode.form, response, re.DOTALL) is not None


def mode_name(row: int, modes: Mapping[str, ModeConfig]) -> str:
    """The mode of row `row` of a batch: they take turns."""
    return list(modes)[row % len(modes)]


def with_modes(
    examples: Sequence[Example], modes: Mapping[str, ModeConfig], first: int = 0
) -> list[Example]:
    """The examples of rows `first`, `first` + 1, … with their modes' tags; metadata["mode"] too."""
    if not modes:
        return list(examples)
    names = [mode_name(first + i, modes) for i in range(len(examples))]
    return [_with_mode(e, name, modes[name]) for e, name in zip(examples, names, strict=True)]


def with_solution(index: int, example: Example, modes: Mapping[str, ModeConfig]) -> Example:
    """Example `index` of the warm start with the tag of its mode, and the label as it writes it."""
    name, mode = mode_name(index, modes), modes[mode_name(index, modes)]
    solution = mode.solutions[index // len(modes) % len(mode.solutions)]
    if example.label is not None:
        solution = solution.replace("{label}", str(example.label))
        example = dataclasses.replace(example, label=solution)
    return _with_mode(example, name, mode)


def _with_mode(example: Example, name: str, mode: ModeConfig) -> Example:
    prompt, metadata = example.prompt, example.metadata | {"mode": name}
    if isinstance(prompt, str):
        return dataclasses.replace(example, prompt=mode.tag + prompt, metadata=metadata)
    messages = tag_messages(prompt, mode.tag)
    return dataclasses.replace(example, prompt=messages, metadata=metadata)


def tag_messages(messages: Sequence[Mapping[str, Any]], tag: str) -> list[dict[str, Any]]:
    """The messages with the tag as system message, or as the first line of the one they have."""
    system, rest = tag, [dict(message) for message in messages]
    if rest and rest[0]["role"] == "system":
        system = f"{tag}\n{rest[0]['content']}"
        rest = rest[1:]
    return [{"role": "system", "content": system}, *rest]


def mode_limits(
    modes: Mapping[str, ModeConfig], prompts: int, group_size: int
) -> dict[str, np.ndarray]:
    """`generate`'s `max_new_tokens` [P, G] and `temperatures` [P] of a batch; {} without modes."""
    if not modes:
        return {}
    found = [modes[mode_name(row, modes)] for row in range(prompts)]
    lengths = np.asarray([[mode.max_new_tokens] * group_size for mode in found], np.int32)
    return {
        "max_new_tokens": lengths,
        "temperatures": np.asarray([mode.temperature for mode in found], np.float32),
    }
