"""The environment of `tests/configs/two_letters.py`: shows a letter, then another."""

import asyncio

from mmrl.environments import Observation, Step


class TwoLetters:
    """Asks for the prompt's letter and then for the label, or the last of a worked episode.

    Half of the reward is for each letter.

    `delay`, about so many seconds before an answer, depends on nothing. `fails` is a prompt at
    which it breaks; `prompts_differ` makes every episode begin its own way.
    """

    made = 0

    def __init__(self, example, delay=0.0, fails="", prompts_differ=False):
        TwoLetters.made += 1
        self.number, self.delay, self.fails = TwoLetters.made, delay, fails
        self.letters = [example.prompt[0], example.label[-1]]
        self.prompts_differ = prompts_differ

    async def reset(self, example):
        if self.letters[0] == self.fails:
            raise ConnectionError("no letters")
        return Observation("a" * (self.number % 2) + ">" if self.prompts_differ else example.prompt)

    async def step(self, response):
        await asyncio.sleep(self.delay * (self.number * 7 % 5))
        right = response == self.letters.pop(0)
        if not self.letters:
            return Step(done=True, reward=right / 2, metrics={"tools/asked": 1}, answer=response)
        return Step(f"{self.letters[0]}>", reward=right / 2, metrics={"tools/asked": 1})

    async def close(self):
        pass
