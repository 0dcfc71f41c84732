"""The calculator of the quickstart's agent: its examples, worked episodes and answers."""

import asyncio
import re

from mmrl.data import DataConfig, examples
from mmrl.environments.sums import ALPHABET, ERROR, Calculator
from mmrl.text import CharTokenizer


def dataset(split="train", terms=3):
    return examples(
        DataConfig(
            source="mmrl.environments.sums:sums", datasets={"sums": {"terms": terms}}, split=split
        )
    )


def steps(example, responses):
    world = Calculator(example)
    return [asyncio.run(world.step(response)) for response in responses]


def test_worked_episodes_are_what_the_calculator_answers_and_solve_the_sum():
    for example in (dataset()[i] for i in range(50)):
        played = steps(example, example.label[::2])
        assert [step.messages for step in played[:-1]] == example.label[1::2]
        assert [step.done for step in played] == [False, False, True]
        assert played[-1].reward == 1
        assert int(example.label[-1]) == sum(map(int, re.findall(r"[+-]?\d+", example.prompt)))


def test_a_wrong_number_ends_it_and_what_is_neither_is_answered():
    example = dataset()[0]
    wrong = str(int(example.label[-1]) + 1)
    played = steps(example, ["+", "1+2+3", "007+1", "", wrong])
    assert [step.messages for step in played[:-1]] == ["=?\n"] * 4
    assert [step.metrics["tools/malformed"] for step in played[:-1]] == [1, 1, 0, 1]
    assert played[-1].done and played[-1].reward == 0 and played[-1].answer == wrong


def test_all_that_is_said_can_be_spelled_and_held_out_sums_are_others():
    tokenizer = CharTokenizer(alphabet=ALPHABET)
    train, held_out = (
        {dataset(split)[i].prompt for i in range(200)} for split in ("train", "held_out")
    )
    assert not train & held_out
    for text in train | set(dataset()[0].label) | {ERROR}:
        assert tokenizer.decode(tokenizer.encode(text)) == text
