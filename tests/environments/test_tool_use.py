"""Tools as an environment: which responses end an episode, and what comes back of the others."""

import asyncio
import json

import pytest

from mmrl.data import Example
from mmrl.environments import EnvironmentConfig, ToolEnvironment, find_environment
from mmrl.errors import UserError
from mmrl.tools import submit, tool


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def call(name: str, **arguments) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def environment() -> ToolEnvironment:
    return ToolEnvironment([tool(add), submit()], "chatml")


def step(environment: ToolEnvironment, response: str):
    return asyncio.run(environment.step(response))


def test_the_episode_begins_with_the_example_and_all_tools(environment):
    own = {"type": "function", "function": {"name": "own", "parameters": {}}}
    messages = [{"role": "user", "content": "2 + 3?"}]
    start = asyncio.run(environment.reset(Example(messages, tools=[own])))
    assert start.prompt == messages
    assert [t["function"]["name"] for t in start.tools] == ["own", "add", "submit"]


def test_results_of_calls_are_messages_and_are_counted(environment):
    response = f"Let me see. {call('add', a=2, b=3)}\n{call('ad', a=1, b=1)}"
    found = step(environment, response)
    assert not found.done and found.messages[0]["content"] == "5"
    assert "add" in found.messages[1]["content"]
    assert found.metrics == {
        "tools/calls": 2, "tools/malformed": 1, "tools/error": 0, "tools/timeout": 0,
    }  # fmt: skip


def test_a_malformed_call_comes_back_as_words(environment):
    found = step(environment, "<tool_call>\n{add: 2\n</tool_call>")
    assert not found.done and "Error" in found.messages[0]["content"]
    assert found.metrics["tools/malformed"] == 1


def test_a_response_without_calls_is_the_answer(environment):
    found = step(environment, "It is 5.")
    assert found.done and found.answer == "It is 5."


def test_a_submitted_answer_ends_the_episode(environment):
    found = step(environment, call("submit", answer="5"))
    assert found.done and found.answer == "5"


def test_tools_are_named_in_a_config_by_import_path():
    tools = ["mmrl.tools:calculator", "environments.opponents:first_free"]
    config = EnvironmentConfig("mmrl.environments.tool_use:tool_environment", {"tools": tools})
    environment = find_environment(config)(Example("2 + 3?"))
    assert [one.name for one in environment.tools] == ["calculator", "first_free"]
    found = step(environment, call("calculator", expression="2 + 3"))
    assert found.messages[0]["content"] == "5"
    wrong = EnvironmentConfig(config.path, {"tools": ["mmrl.tools:calculater"]})
    with pytest.raises(UserError, match="Did you mean calculator"):
        find_environment(wrong)(Example(""))
