"""The tool-calling demo: prompts and right answers fit, and its template carries a conversation."""

import dataclasses
import json
from pathlib import Path

import pytest

from mmrl import config as configs
from mmrl.data import Sample, examples, prompt_tokens
from mmrl.rewards import reward_of, score
from mmrl.text import parse_response
from mmrl.training.config import TrainConfig

CONFIG = Path(__file__).parents[1] / "configs" / "smollm2_tools.py"


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return configs.load(CONFIG)


@pytest.fixture(scope="module")
def splits(config):
    sources = [
        examples(dataclasses.replace(config.data, split=split)) for split in ("train", "held_out")
    ]
    return [[source[index] for index in range(len(source))] for source in sources]


def right_response(example):
    """The first possible answer, without what may be left out."""
    calls = []
    for answer in example.label:
        [(name, possible)] = answer.items()
        arguments = {key: _first(right) for key, right in possible.items() if "" not in right}
        body = json.dumps({"name": name, "arguments": arguments})
        calls.append(f"<tool_call>\n{body}\n</tool_call>")
    return "\n".join(calls)


def _first(possible):
    """The first value; in dictionaries BFCL gives possible values one level deep."""
    value = possible[0] if possible else None
    if isinstance(value, dict):
        return {key: right[0] for key, right in value.items() if right and "" not in right}
    if isinstance(value, list):
        return [_first([one]) if isinstance(one, dict) else one for one in value]
    return value


def test_every_category_is_in_both_splits_and_its_prompts_fit(config, splits):
    for split in splits:
        assert {e.metadata["dataset"] for e in split} == set(config.data.datasets)
        assert all(len(prompt_tokens(e, config.tokenizer)) <= config.prompt_length for e in split)
    assert len(splits[1]) >= config.evaluation.prompts >= 100


def test_right_answers_are_short_enough_and_earn_the_reward(config, splits):
    responses = [(e, right_response(e)) for split in splits for e in split]
    limit = config.sampling.max_new_tokens
    fits = [len(config.tokenizer.encode(response)) < limit for _, response in responses]
    assert sum(fits) >= 0.97 * len(fits)
    samples = [Sample(response=r, label=e.label, metadata=e.metadata) for e, r in responses]
    results = score(samples, reward_of(config.reward))
    assert not any(result.error for result in results)
    assert sum(result.value for result in results) >= 0.97 * len(results)


def test_the_template_shows_tools_once_and_calls_as_the_reward_reads_them(config, splits):
    example = splits[0][0]
    function = {"name": "f.g", "arguments": {"x": [1, "two"]}}
    conversation = [
        {"role": "system", "content": "Be kind."},
        *example.prompt,
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "done"},
        {"role": "user", "content": "Thanks"},
    ]
    render = config.tokenizer.chat_template.render
    text = render(conversation, example.tools)
    name = example.tools[0]["function"]["name"]
    assert text.count(f"\n{name}(") == 1 and text.count("Be kind.") == 1
    assert text.endswith("<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n")
    written = text.rpartition("<tool_response>")[0].rpartition("<|im_start|>assistant\n")[2]
    [call] = parse_response(written.partition("<|im_end|>")[0], "chatml").calls
    assert (call.name, call.arguments) == (function["name"], function["arguments"])
    assert (
        render(conversation[:-1], example.tools, False)
        == text.partition("<|im_start|>user\nThanks")[0]
    )


def test_without_tools_it_is_the_checkpoints_own_template(config):
    own = dataclasses.replace(config.tokenizer, template=None).chat_template
    ours = config.tokenizer.chat_template
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for messages in (chat, chat[:1], [{"role": "system", "content": "Brief."}, *chat[:1]]):
        for generation in (False, True):
            assert ours.render(messages, None, generation) == own.render(messages, None, generation)
