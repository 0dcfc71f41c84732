"""Anthropic's messages: a body to an `Ask`.

https://docs.claude.com/en/api/messages. What Claude Code sends beside it (cache_control, metadata,
context_management, betas) is accepted and changes nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from mmrl.serving import fields
from mmrl.serving.ask import Ask
from mmrl.serving.engine import Engine
from mmrl.serving.fields import unsupported, wrong
from mmrl.serving.limits import ApiError
from mmrl.serving.names import mode_of_model
from mmrl.serving.openai_request import ONLY_TEXT, STOPS, join_system, known_tool
from mmrl.serving.prompts import check_tools

_SESSION = re.compile(r"session_?i?d?\W{0,5}_?([0-9a-f-]{36})")  # in Claude Code's user_id


def parse_messages(
    body: Mapping[str, Any], headers: Mapping[str, str], engine: Engine, *, counting: bool = False
) -> Ask:
    """The body of POST /v1/messages, or of .../count_tokens, which has no max_tokens.

    Raises `ApiError` naming the field.
    """
    model, mode = mode_of_model(body, headers, engine)
    new_tokens = fields.integer(body, "max_tokens", None, 1)
    if new_tokens is None and not counting:
        raise ApiError(400, "max_tokens: Field required", "max_tokens")
    _refuse_what_is_not_there(body)
    tools, call, parallel = _tools(body)
    base = engine.modes[mode].sampling
    asked: Any = fields.mapping(body, "thinking").get("type")
    if asked not in (None, "enabled", "disabled", "adaptive"):
        raise wrong("thinking.type", "enabled, disabled or adaptive", asked)
    thinking = {"enabled": True, "disabled": False}.get(asked, engine.modes[mode].thinking)
    user = fields.string(fields.mapping(body, "metadata"), "user_id")
    found = _SESSION.search(user or "")
    return Ask(
        model=model,
        mode=mode,
        messages=_messages(body),
        tools=tools,
        call=call,
        parallel=parallel,
        sampling=engine.sampling(
            mode,
            temperature=fields.number(body, "temperature", base.temperature, 0, 2),
            top_p=fields.number(body, "top_p", base.top_p, 0, 1),
            top_k=fields.integer(body, "top_k", base.top_k, 0),
            new_tokens=new_tokens,
        ),
        stop=fields.strings(body, "stop_sequences", STOPS),
        thinking=thinking,
        show_thoughts=asked != "disabled",
        stream=fields.boolean(body, "stream"),
        session=headers.get("x-session-id") or (found.group(1) if found else None),
        user=user,
        call_prefix="toolu",
    )


def _refuse_what_is_not_there(body: Mapping[str, Any]) -> None:
    for name in ("mcp_servers", "container"):
        if body.get(name):
            raise unsupported(name, "it needs Anthropic's own servers")
    form = body.get("output_format") or fields.mapping(body, "output_config").get("format")
    if form:
        raise unsupported("output_config.format", "it needs constrained decoding; use a tool")


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As OpenAI has them: results of tools are messages of their own."""
    given = fields.objects(body, "messages")
    if not given:
        raise wrong("messages", "a list of at least one message", body.get("messages"))
    system = _text(body.get("system"), "system")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    names: dict[str, str] = {}
    for i, message in enumerate(given):
        role, place = message.get("role"), f"messages.{i}"
        if role == "assistant":
            messages.append(_assistant(message, place, names))
        elif role == "user":
            messages += _user(message, place, names)
        elif role == "system":
            messages.append({"role": role, "content": _text(message.get("content"), place)})
        else:
            raise ApiError(400, f"{place}.role must be user or assistant", f"{place}.role")
    return join_system(messages)


def _assistant(message: dict[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    """`names` gains the tools of the calls, by the calls' ids."""
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(_blocks(message.get("content"), f"{place}.content")):
        kind, at = block.get("type"), f"{place}.content.{i}"
        if kind == "text":
            texts.append(_string(block, "text", at))
        elif kind == "thinking":
            thoughts.append(_string(block, "thinking", at))
        elif kind == "tool_use":
            name, arguments = _string(block, "name", at), block.get("input")
            if not isinstance(arguments, dict):
                raise wrong(f"{at}.input", "an object", arguments)
            identity = _string(block, "id", at)
            names[identity] = name
            written = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            calls.append({"id": identity, "type": "function", "function": written})
        elif kind != "redacted_thinking":
            raise _not_text(kind, at)
    found: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        found["reasoning_content"] = "\n".join(thoughts)
    return found | ({"tool_calls": calls} if calls else {})


def _user(message: dict[str, Any], place: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """A turn of the user's: results of tools, each a message, and what is said around them."""
    messages: list[dict[str, Any]] = []
    texts: list[str] = []

    def said() -> None:
        if texts:
            messages.append({"role": "user", "content": "\n".join(texts)})
            texts.clear()

    for i, block in enumerate(_blocks(message.get("content"), f"{place}.content")):
        at = f"{place}.content.{i}"
        if block.get("type") == "tool_result":
            said()
            call = _string(block, "tool_use_id", at)
            content = _text(block.get("content"), f"{at}.content")
            name = names.get(call, "tool")
            result = {"role": "tool", "content": content, "tool_call_id": call, "name": name}
            error = {"is_error": True} if fields.boolean(block, "is_error") else {}
            messages.append(result | error)
        else:
            texts.append(_block_text(block, at))
    said()
    return messages or [{"role": "user", "content": ""}]


def _blocks(content: Any, place: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(x, dict) for x in content):
        raise wrong(place, "a text or a list of blocks", content)
    return content


def _text(content: Any, place: str) -> str:
    """The text of a system prompt or of a tool's result."""
    if content is None:
        return ""
    blocks = _blocks(content, place)
    return "\n".join(_block_text(block, f"{place}.{i}") for i, block in enumerate(blocks))


def _block_text(block: dict[str, Any], place: str) -> str:
    kind = block.get("type")
    source = block.get("source")
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        return _string(source, "data", f"{place}.source")
    if kind != "text":
        raise _not_text(kind, place)
    return _string(block, "text", place)


def _not_text(kind: Any, place: str) -> ApiError:
    return ApiError(
        400,
        f"{place} is of type {kind!r}: {ONLY_TEXT}",
        place,
        "unsupported_content",
    )


def _string(block: Mapping[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise wrong(f"{place}.{name}", "a string", value)
    return value


def _tools(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]] | None, str | None, bool]:
    """(tools as OpenAI describes them, the one that must be called, whether several may be)."""
    tools = []
    for i, tool in enumerate(fields.objects(body, "tools")):
        kind = tool.get("type") or "custom"
        if kind != "custom":
            raise unsupported(f"tools.{i}", f"{kind!r} is a tool of Anthropic's servers or clients")
        kept = {key: tool[key] for key in ("name", "description") if tool.get(key)}
        kept["parameters"] = tool.get("input_schema")
        tools.append({"type": "function", "function": kept})
    check_tools(tools)
    choice = fields.mapping(body, "tool_choice")
    kind = choice.get("type", "auto")
    parallel = not fields.boolean(choice, "disable_parallel_tool_use")
    if not tools or kind == "none":
        return None, None, parallel
    if kind == "auto":
        return tools, None, parallel
    if kind == "any":
        return tools, "", parallel
    if kind != "tool":
        raise wrong("tool_choice.type", "auto, any, tool or none", kind)
    return tools, known_tool(tools, choice.get("name")), parallel
