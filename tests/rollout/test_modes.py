"""What the modes ask of a chat template, and how training mixes them."""

import dataclasses
import json

import pytest

from mmrl import config as configs
from mmrl.data import Example
from mmrl.rollout.modes import (
    MODES,
    ModeConfig,
    has_form,
    mode_limits,
    mode_of,
    render_prompt,
    with_modes,
    with_solution,
)
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


def test_the_profiles_are_those_that_are_promised():
    lightning, pro = MODES["lightning"].sampling, MODES["pro"].sampling
    assert (lightning.max_new_tokens, lightning.temperature) == (512, 0.8)
    assert (pro.max_new_tokens, pro.temperature, pro.top_p, pro.top_k) == (8192, 1.0, 0.95, 40)
    profile = ModeConfig.of("lightning", "brief: ", length_penalty=0.2)
    assert (profile.max_new_tokens, profile.temperature, profile.length_penalty) == (512, 0.8, 0.2)


BRIEF = ModeConfig("brief: ", 4, 0.5, solutions=("{label}", "I say {label}"))
LONG = ModeConfig("think: ", 9, 1.0)
TWO = {"brief": BRIEF, "long": LONG}


def test_prompts_take_turns_in_the_modes_and_carry_their_tags():
    examples = [Example(f"q{i}", label=str(i), metadata={"i": i}) for i in range(5)]
    tagged = with_modes(examples, TWO, first=3)
    assert [e.prompt for e in tagged] == [
        "think: q0", "brief: q1", "think: q2", "brief: q3", "think: q4",
    ]  # fmt: skip
    assert [e.metadata["mode"] for e in tagged] == ["long", "brief", "long", "brief", "long"]
    assert all(e.metadata["i"] == i and e.label == str(i) for i, e in enumerate(tagged))
    assert "mode" not in examples[0].metadata
    assert with_modes(examples, {}) == examples


def test_a_chat_has_the_tag_before_its_system_message():
    user = {"role": "user", "content": "q"}
    plain, briefed = with_modes(
        [Example([user]), Example([{"role": "system", "content": "Be kind."}, user])],
        {"long": LONG},
    )
    assert plain.prompt == [{"role": "system", "content": "think: "}, user]
    assert briefed.prompt == [{"role": "system", "content": "think: \nBe kind."}, user]


def test_worked_solutions_take_turns_in_the_forms_of_their_mode():
    found = [with_solution(i, Example("q", label=7), TWO) for i in range(6)]
    assert [e.label for e in found] == ["7", "7", "I say 7", "7", "7", "7"]
    assert [e.prompt for e in found] == ["brief: q", "think: q"] * 3
    assert with_solution(0, Example("q"), TWO).label is None


def test_limits_and_temperatures_are_those_of_each_prompts_mode():
    limits = mode_limits(TWO, prompts=3, group_size=2)
    assert limits["max_new_tokens"].tolist() == [[4, 4], [9, 9], [4, 4]]
    assert limits["temperatures"].tolist() == [0.5, 1.0, 0.5]
    assert mode_limits({}, 3, 2) == {}


@pytest.mark.parametrize(
    "change",
    [dict(tag=""), dict(max_new_tokens=0), dict(temperature=0.0), dict(length_penalty=1.0)],
)
def test_a_mode_out_of_range_is_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(BRIEF, **change)


def test_a_response_must_match_the_form_of_its_mode_in_whole():
    pro = dataclasses.replace(LONG, form=r"\w+\n<answer>.+</answer>")
    assert has_form("ab\n<answer>a\nb</answer>", pro)
    assert not has_form("<answer>ab</answer>", pro)
    assert not has_form("ab\n<answer>ab</answer> and more", pro)
    assert has_form("anything", BRIEF)


def test_a_run_that_trained_a_mode_is_asked_for_it_as_it_was_trained(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"modes": {"pro": configs.to_dict(LONG)}}))
    pro, lightning = mode_of(tmp_path, "pro"), mode_of(tmp_path, "lightning")
    assert (pro.tag, pro.sampling.max_new_tokens, pro.sampling.temperature) == ("think: ", 9, 1.0)
    assert lightning == MODES["lightning"]
    assert mode_of(tmp_path / "nowhere", "pro") == MODES["pro"]
    prompt = render_prompt(builtin_template("chatml"), MESSAGES, pro)
    assert prompt.startswith("<|im_start|>system\nthink: <|im_end|>\n<|im_start|>user\nHello")
