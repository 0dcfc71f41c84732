"""Tools that the tests describe to the model, the binary as it runs, and plain HTTP."""

import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny_run import start_module

WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
OPENAI_TOOLS = [{"type": "function", "function": WEATHER}]
ANTHROPIC_TOOLS = [
    {
        "name": "weather",
        "description": WEATHER["description"],
        "input_schema": WEATHER["parameters"],
        "cache_control": {"type": "ephemeral"},
    }
]
TWO_CALLS = [
    "I will look.\n",
    '<tool_call>\n{"name": "wea',
    'ther", "arguments": {"city": "Köln"}}\n</tool',
    '_call>\n<tool_call>{"name": "weather", "arguments": {"city": "Rom", "days": 2}}</tool_call>',
]
ENDLESS: list[str] = []
ARGUMENTS = [{"city": "Köln"}, {"city": "Rom", "days": 2}]


@contextlib.contextmanager
def running_server(checkpoint: Path, *flags: str) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """`python -m mmrl.serve` on a free port, its address, and what it said until it was ready."""
    process = start_module("mmrl.serve", f"--checkpoint={checkpoint}", "--port=0", *flags)
    try:
        said = ""
        while "logged" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        (address,) = [word for word in said.split() if word.startswith("http://127.0.0.1:")]
        yield process, address, said
    finally:
        process.kill()
        process.communicate()


def post(url: str, path: str, body: Any, headers: dict | None = None):
    """(status, headers, JSON) of a POST; `body` may be bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(url, "POST", path, data, {"content-type": "application/json"} | (headers or {}))


def get(url: str, path: str, headers: dict | None = None):
    return request(url, "GET", path, None, headers or {})


def request(url: str, method: str, path: str, data: bytes | None, headers: dict):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return response.status, response.headers, json.loads(text) if is_json else text


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
