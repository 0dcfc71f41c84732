"""Sums that are too hard for a small model alone: it has a calculator for two numbers.

    37+58-19        the prompt
    37+58           the model calls the calculator, by writing an expression
    =95             what comes back
    95-19
    =76
    76              a number is the answer

Every character may be a token. `sums` are the examples, `Calculator` the environment, and the label
of an example is a worked episode for the warm start.
"""

import random
import re

from mmrl.data import DataConfig, Example
from mmrl.data.tasks import is_held_out
from mmrl.environments.environment import Observation, Step
from mmrl.text.tool_calls import ToolCall
from mmrl.tools import calculator, call

ALPHABET = "0123456789+-=?\n"
CALL = re.compile(r"-?\d+[+-]\d+")
NUMBER = re.compile(r"-?\d+")
ERROR = "=?\n"  # answers what is neither


class Sums:
    """`config.size` sums of `terms` numbers below `below`, by `config.datasets["sums"]`."""

    def __init__(self, config: DataConfig):
        settings = {"terms": 3, "below": 100} | config.datasets.get("sums", {})
        self._terms, self._below = settings["terms"], settings["below"]
        self._seed, self._size = config.seed, config.size
        self._held_out, self._every = config.split == "held_out", config.held_out_every

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        draw = random.Random(f"{self._seed} {self._held_out} {index}")
        while True:
            numbers = [draw.randrange(self._below) for _ in range(self._terms)]
            signs = [draw.choice("+-") for _ in numbers[1:]]
            question = str(numbers[0]) + "".join(f"{s}{n}" for s, n in zip(signs, numbers[1:]))
            if is_held_out(question, self._every) == self._held_out:
                return Example(f"{question}\n", worked(numbers, signs), {"dataset": "sums"})


sums = Sums


def worked(numbers: list[int], signs: list[str]) -> list[str]:
    """The turns of an episode that solves the sum, the model's first."""
    turns, total = [], numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        turns.append(f"{total}{sign}{number}")
        total += number if sign == "+" else -number
        turns.append(f"={total}\n")
    return [*turns, str(total)]


class Calculator:
    """Ends with a number, and the reward 1 if it is the sum's."""

    def __init__(self, example: Example):
        self.right = example.label[-1]
        self.tools = [calculator()]

    async def reset(self, example: Example) -> Observation:
        return Observation(example.prompt)

    async def step(self, response: str) -> Step:
        text = response.strip()
        if NUMBER.fullmatch(text):
            right = float(text == self.right)
            return Step(done=True, reward=right, answer=text)
        metrics = {"tools/calls": 1.0, "tools/malformed": 0.0}
        if not CALL.fullmatch(text):
            return Step(ERROR, metrics=metrics | {"tools/malformed": 1.0})
        result = await call(self.tools, ToolCall("calculator", {"expression": text}))
        return Step(f"={result.text}\n" if result.status == "ok" else ERROR, metrics=metrics)

    async def close(self) -> None:
        pass
