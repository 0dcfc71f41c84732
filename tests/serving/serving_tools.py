"""Tools that the tests describe to the model, and plain HTTP."""

import http.client
import json
from typing import Any

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
