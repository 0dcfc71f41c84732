"""The two ways a model is offered to a user: "lightning" answers at once, "pro" thinks first.

MiniMax has modes of these names in its products and none in its checkpoints: no token or template
switches them. The settings here are mmrl's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.rollout.sampling import SamplingConfig
from mmrl.text import ChatTemplate

# What a template leaves open where the model is to think, and how M2's history shows no thoughts.
_OPEN, _CLOSE = "<think>\n", "\n</think>\n\n"


@dataclass(frozen=True)
class Mode:
    """How a mode samples, the tokens that a conversation may have, and whether the model thinks."""

    sampling: SamplingConfig
    context: int
    thinking: bool


MODES = {
    "lightning": Mode(
        SamplingConfig(group_size=1, max_new_tokens=512, temperature=0.8, top_p=0.95),
        context=4096,
        thinking=False,
    ),
    "pro": Mode(
        SamplingConfig(group_size=1, max_new_tokens=8192, temperature=1.0, top_p=0.95),
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
    prompt = template.render(messages, tools, enable_thinking=mode.thinking)
    return prompt + _CLOSE if prompt.endswith(_OPEN) and not mode.thinking else prompt
