"""Environments of the package verifiers, by a stand-in of its classic interface."""

import asyncio
import json

import pytest
from oracles import fake_verifiers
from oracles.fake_verifiers import Message, MultiTurnEnv, Rubric, ToolEnv

from mmrl.data import DataConfig, examples
from mmrl.environments import verifiers as adapter
from mmrl.environments.verifiers import Verifiers
from mmrl.errors import UserError

ROWS = [
    {"prompt": [{"role": "user", "content": "2 + 3?"}], "answer": "5", "info": None},
    {"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "2", "info": None},
]


def exact(completion, answer) -> float:
    return float(completion[-1].content == answer)


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Guess(MultiTurnEnv):
    """Says no until the answer is right, and then something to end with."""

    async def env_response(self, messages, state):
        if messages[-1].content == state["answer"]:
            state["final_env_response"] = [Message("user", "Right.")]
            return state["final_env_response"]
        return [Message("user", "No.")]


@pytest.fixture(autouse=True)
def package(monkeypatch):
    makers = {
        "single": lambda: MultiTurnEnv(ROWS, Rubric([exact]), max_turns=1),
        "guess": lambda turns=4: Guess(ROWS, Rubric([exact]), max_turns=turns),
        "tools": lambda: ToolEnv(ROWS, Rubric([exact]), max_turns=4, tools=[add]),
        "none": lambda: object(),
    }
    adapter.environment.cache_clear()
    yield fake_verifiers.install(makers, monkeypatch)
    adapter.environment.cache_clear()


def dataset(split="train", **environments):
    source = "mmrl.environments.verifiers:rows"
    return examples(DataConfig(source=source, datasets=environments, split=split))


def play(example, responses, family=None):
    async def episode():
        world = Verifiers(example, family)
        start = await world.reset(example)
        return start, [await world.step(response) for response in responses]

    return asyncio.run(episode())


def test_examples_are_the_rows_and_evaluation_has_its_own():
    found = dataset(guess={"turns": 2})
    assert len(found) == 2 and len(dataset("held_out", guess={})) == 1
    assert found[1].prompt == ROWS[1]["prompt"] and found[1].label == "2"


def test_a_single_turn_is_judged_by_the_rubric():
    start, [step] = play(dataset(single={})[0], ["5"])
    assert start.prompt == ROWS[0]["prompt"] and start.tools is None
    assert step.done and step.reward == 1 and step.metrics == {"rubric/exact": 1}
    assert play(dataset(single={})[0], ["6"])[1][0].reward == 0


def test_what_the_environment_says_is_the_next_turn_until_it_ends():
    _, steps = play(dataset(guess={})[0], ["3", "4", "5"])
    assert [step.messages for step in steps[:2]] == [[{"role": "user", "content": "No."}]] * 2
    assert [step.done for step in steps] == [False, False, True] and steps[-1].reward == 1
    _, steps = play(dataset(guess={"turns": 2})[0], ["3", "4"])
    assert steps[-1].done and steps[-1].reward == 0


def test_tool_calls_reach_the_environment_and_its_results_come_back():
    call = json.dumps({"name": "add", "arguments": {"a": 2, "b": 3}})
    responses = [f"Let me see.\n<tool_call>\n{call}\n</tool_call>", "5"]
    start, steps = play(dataset(tools={})[0], responses, "chatml")
    assert [tool["function"]["name"] for tool in start.tools] == ["add"]
    assert steps[0].messages == [{"role": "tool", "content": "5", "tool_call_id": "call00000"}]
    assert steps[1].done and steps[1].reward == 1


def test_what_is_no_multi_turn_environment_is_refused(package):
    with pytest.raises(UserError, match="which is no MultiTurnEnv"):
        dataset(none={})
    del package.MultiTurnEnv
    with pytest.raises(UserError, match="<0.4"):
        dataset(single={})
