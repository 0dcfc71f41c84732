"""Several attempts at a task that a reward judges."""

import asyncio

import pytest

from mmrl.data import Example
from mmrl.environments.attempts import Attempts


def play(responses: list[str], prompt="ab?", **settings):
    example = Example(prompt, "ab", {"kind": "letters"})
    world = Attempts(example, reward="rewards.letters_judge:judge", **settings)
    assert asyncio.run(world.reset(example)).prompt == prompt
    return [asyncio.run(world.step(response)) for response in responses]


def test_the_episodes_reward_is_that_of_the_best_attempt_discounted():
    steps = play(["ax", "x", "ab"], attempts=3, discount=0.9)
    assert [step.done for step in steps] == [False, False, True]
    assert sum(step.reward for step in steps) == pytest.approx(0.9**2)
    assert [step.reward for step in steps] == pytest.approx([0.5, 0, 0.81 - 0.5])
    assert [step.metrics["solved"] for step in steps] == [0, 0, 1]
    assert not any(step.metrics["attempts/solved_first"] for step in steps)
    assert steps[-1].answer == "ab"


def test_the_last_attempt_ends_it_and_a_first_success_too():
    assert [step.done for step in play(["x", "x"], attempts=2)] == [False, True]
    [step] = play(["ab"], attempts=2)
    assert step.done and step.reward == 1 and step.metrics["attempts/solved_first"] == 1
    [step] = play(["x"], attempts=1)
    assert step.done and step.reward == 0


def test_feedback_has_the_form_of_the_prompt():
    assert play(["x"], feedback="no\n")[0].messages == "no\n"
    chat = [{"role": "user", "content": "ab?"}]
    assert play(["x"], chat, feedback="no")[0].messages == [{"role": "user", "content": "no"}]
