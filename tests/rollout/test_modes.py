"""What the modes ask of a chat template."""

import pytest

from mmrl.rollout.modes import MODES, render_prompt
from mmrl.text import ChatTemplate, builtin_template

MESSAGES = [{"role": "user", "content": "Hello"}]
QWEN3 = ChatTemplate(
    "qwen3",
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)


@pytest.mark.parametrize("mode", MODES)
def test_only_pro_leaves_the_thinking_of_m2_open(mode):
    prompt = render_prompt(builtin_template("m2"), MESSAGES, MODES[mode])
    assert "Hello" in prompt
    end = "]~b]ai\n<think>\n" + ("" if mode == "pro" else "\n</think>\n\n")
    assert prompt.endswith(end)


def test_templates_that_can_switch_thinking_off_are_told_to():
    assert render_prompt(QWEN3, MESSAGES, MODES["lightning"]) == "Hello<think>\n\n</think>\n\n"
    assert render_prompt(QWEN3, MESSAGES, MODES["pro"]) == "Hello"


def test_templates_without_thinking_are_the_same_in_both_modes():
    prompts = {render_prompt(builtin_template("chatml"), MESSAGES, mode) for mode in MODES.values()}
    assert prompts == {"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"}


def test_answers_of_pro_are_longer_and_fit_the_context():
    lightning, pro = MODES["lightning"], MODES["pro"]
    assert lightning.sampling.max_new_tokens < pro.sampling.max_new_tokens
    assert all(mode.sampling.max_new_tokens < mode.context for mode in MODES.values())
