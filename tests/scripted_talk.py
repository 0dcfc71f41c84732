"""Conversations for tests: who said what, one text a turn, as the exchanges that a server logs."""

import json
from typing import Any

from mmrl.conversations import Exchange

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(arguments: dict[str, Any], name: str = "weather") -> dict[str, Any]:
    """An assistant's message that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "c1", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def tool(text: str, **fields: Any) -> dict[str, Any]:
    """The result of a call."""
    return {"role": "tool", "tool_call_id": "c1", "content": text, **fields}


def exchanges(*turns: str | dict[str, Any], name: str = "e", **fields: Any) -> list[Exchange]:
    """Of turns of the user (text, or messages of tools) and the assistant, one a response.

    A text begins with "u: " or "a: ". The ids are e0, e1, …, and the times 0, 1, …
    """
    roles = {"u": "user", "a": "assistant", "s": "system"}
    messages = [
        {"role": roles[turn[0]], "content": turn[3:]} if isinstance(turn, str) else turn
        for turn in turns
    ]
    found = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            settings = dict(tools=None, finish_reason="stop", time=float(len(found))) | fields
            found.append(
                Exchange(
                    id=f"{name}{len(found)}",
                    api="openai",
                    mode="lightning",
                    messages=messages[:i],
                    response=message,
                    prompt_tokens=1,
                    completion_tokens=1,
                    **settings,
                )
            )
    return found
