"""A call gives text and a status whatever the model wrote and whatever the tool does."""

import asyncio
import json
import threading
import time

import pytest

from mmrl.errors import UserError
from mmrl.text import ToolCall, builtin_template, parse_response
from mmrl.tools import Submission, Tool, ToolError, call, call_all, counts, tool


def weather(city: str, days: int = 1) -> dict:
    """Forecasts the weather.

    As good as any other.

    Args:
        city: where,
            in English
        days (int): how many
    Returns:
        city: not an argument
    """
    return {"città": city, "days": days}


async def slow(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "done"


def blocking(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def answer(tools, name, **arguments):
    return asyncio.run(call(tools, ToolCall(name, arguments)))


def test_a_docstring_describes_the_tool_and_its_arguments():
    made = tool(weather)
    assert (made.name, made.description) == (
        "weather",
        "Forecasts the weather.\n\nAs good as any other.",
    )
    properties = made.parameters["properties"]
    assert properties["city"]["description"] == "where, in English"
    assert properties["days"] == {"type": "integer", "description": "how many", "default": 1}
    assert "weather" in builtin_template("chatml").render(
        [{"role": "user", "content": "Hi"}], [made.schema]
    )


def test_results_are_text_or_json():
    assert answer([tool(weather)], "weather", city="Roma").text == '{"città": "Roma", "days": 1}'
    assert answer([tool(slow)], "slow", seconds=0).text == "done"
    assert answer([tool(blocking)], "blocking", seconds=0).text == "done"

    def odd() -> object:
        return {1, 2}

    assert answer([tool(odd)], "odd").text == "{1, 2}"


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("wether", {}, "Error: no tool 'wether'. Did you mean weather? There are: weather, slow"),
        ("weather", {}, "Error: missing argument: city"),
        ("weather", {"city": 5}, "Error: city must be a string, got 5"),
        ("weather", {"city": "a", "day": 5}, "Error: no argument 'day'. Did you mean days?"),
    ],
)
def test_calls_that_cannot_be_made_are_answered_and_counted(name, arguments, text):
    result = asyncio.run(call([tool(weather), tool(slow)], ToolCall(name, arguments)))
    assert result.text.startswith(text)
    assert result.status == "malformed"


class Unprintable(Exception):
    def __str__(self):
        return ""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("broken"), "Error: ValueError: broken"),
        (ToolError("no such page"), "Error: no such page"),
        (Unprintable(), "Error: Unprintable"),
        (StopIteration(3), "Error: RuntimeError: StopIteration: 3"),
        (SystemExit(3), "Error: RuntimeError: SystemExit: 3"),
        (KeyboardInterrupt(), "Error: RuntimeError: KeyboardInterrupt"),
        (TimeoutError("mine"), "Error: TimeoutError: mine"),
        (RecursionError("deep"), "Error: RecursionError: deep"),
    ],
)
def test_what_a_tool_raises_is_an_error_for_the_model(error, text):
    def fails() -> str:
        raise error

    result = answer([tool(fails)], "fails")
    assert (result.status, result.text) == ("error", text)


@pytest.mark.parametrize("function", [slow, blocking])
def test_time_ends_a_call_and_no_other(function):
    tools = [tool(function, timeout_seconds=0.3)]

    async def main():
        name = function.__name__
        return await asyncio.gather(
            *(call(tools, ToolCall(name, {"seconds": seconds})) for seconds in (3, 0))
        )

    started = time.monotonic()
    late, quick = asyncio.run(main())
    assert time.monotonic() - started < 2
    assert (late.status, late.text) == ("timeout", "Error: no result within 0.3 seconds")
    assert (quick.status, quick.text) == ("ok", "done")
    assert late.seconds == pytest.approx(0.3, abs=0.5)


def test_calls_of_a_response_run_at_once_and_stay_in_order():
    met = threading.Barrier(3, timeout=10)

    def meet(name: str) -> str:
        met.wait()
        return name

    calls = "".join(
        f'<tool_call>{{"name": "meet", "arguments": {{"name": "{name}"}}}}</tool_call>'
        for name in "abc"
    )
    parsed = parse_response(f"{calls}<tool_call>oops</tool_call><tool_call>", "chatml")
    results = asyncio.run(call_all([tool(meet)], parsed))
    assert [one.text for one in results[:3]] == ["a", "b", "c"]
    assert [one.status for one in results] == ["ok", "ok", "ok", "malformed", "malformed"]
    assert "'oops' is not JSON" in results[3].text
    assert counts(results) == {"calls": 5, "malformed": 2, "error": 0, "timeout": 0}
    assert asyncio.run(call_all([], parse_response("just text", "chatml"))) == []


def test_a_submission_ends_the_episode_with_its_answer():
    def hand_in(value: int) -> Submission:
        return Submission(value)

    result = answer([tool(hand_in)], "hand_in", value=5)
    assert (result.status, result.text, result.submission) == ("ok", "5", Submission(5))
    assert answer([tool(hand_in)], "hand_in", value="x").submission is None


def test_long_results_lose_their_middle():
    def talk(length: int) -> str:
        return "<" + "x" * (length - 2) + ">"

    tools = [tool(talk, most_characters=200)]
    assert answer(tools, "talk", length=200).text == "<" + "x" * 198 + ">"
    text = answer(tools, "talk", length=5000).text
    assert len(text) <= 200
    assert text.startswith("<x")
    assert text.endswith("x>")
    assert "4800 characters left out" in text


def test_a_cancelled_call_is_cancelled():
    async def main():
        task = asyncio.create_task(call([tool(slow)], ToolCall("slow", {"seconds": 30})))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_hostile_responses_never_raise():
    tools = [tool(weather)]
    for text in [
        '<tool_call>{"name": "weather", "arguments": {"city": "\\ud8", "days": 1e400}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": ' + "[" * 5000 + "}}</tool_call>",
        '<tool_call>{"name": "' + "x" * 100_000 + '", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "a", "self": 1}}</tool_call>',
    ]:
        (result,) = asyncio.run(call_all(tools, parse_response(text, "chatml")))
        assert result.status == "malformed"
        assert len(result.text) <= 20_000
    surrogate = answer(tools, "weather", city="\ud800")
    json.dumps(surrogate.text)


def test_names_and_limits_are_checked():
    for values, words in [
        ({"name": "two words"}, "letters, digits"),
        ({"timeout_seconds": 0}, "timeout_seconds > 0"),
        ({"most_characters": 5}, "most_characters >= 100"),
    ]:
        with pytest.raises(UserError, match=words):
            tool(weather, **values)
    with pytest.raises(UserError, match="letters"):
        Tool("", "", {}, slow)
