"""OpenAI's chat completions: a body to an `Ask`.

https://platform.openai.com/docs/api-reference/chat. Thoughts are `reasoning_content`, as vLLM and
DeepSeek name them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.serving import fields
from mmrl.serving.ask import Ask
from mmrl.serving.engine import TOP_LOGPROBS, Engine
from mmrl.serving.fields import unsupported, wrong
from mmrl.serving.limits import ApiError
from mmrl.serving.names import mode_of_model
from mmrl.serving.prompts import check_tools

STOPS = 16
ONLY_TEXT = "the model reads text, no images, audio or files"
_ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_chat(body: Mapping[str, Any], headers: Mapping[str, str], engine: Engine) -> Ask:
    """The body of POST /v1/chat/completions. Raises `ApiError` 400 naming the field."""
    model, mode = mode_of_model(body, headers, engine)
    refuse_what_is_not_there(body)
    tools, call = _tools(body)
    new_tokens = fields.integer(body, "max_completion_tokens", None, 1)
    listed = fields.integer(body, "top_logprobs", 0, 0, TOP_LOGPROBS)
    logprobs = fields.boolean(body, "logprobs")
    if listed and not logprobs:
        raise wrong("top_logprobs", "0 without logprobs", listed)
    effort = fields.string(body, "reasoning_effort")
    thinking = engine.modes[mode].thinking if effort is None else effort not in ("none", "minimal")
    metadata = fields.mapping(body, "metadata")
    return Ask(
        model=model,
        mode=mode,
        messages=_messages(body),
        tools=tools,
        call=call,
        parallel=fields.boolean(body, "parallel_tool_calls", True),
        sampling=sampling(
            body, mode, engine, new_tokens or fields.integer(body, "max_tokens", None, 1)
        ),
        stop=fields.strings(body, "stop", STOPS),
        seed=fields.integer(body, "seed", None, -(2**63)),
        choices=fields.integer(body, "n", 1, 1, engine.limits.choices),
        top_logprobs=listed if logprobs else None,
        thinking=thinking,
        stream=fields.boolean(body, "stream"),
        usage_in_stream=fields.boolean(fields.mapping(body, "stream_options"), "include_usage"),
        session=headers.get("x-session-id") or _text(metadata.get("session_id")),
        user=fields.string(body, "user"),
        logged=fields.boolean(body, "store", True),
    )


def sampling(body: Mapping[str, Any], mode: str, engine: Engine, new_tokens: int | None):
    """The settings that chat and plain completions share; `top_k` is vLLM's addition."""
    base = engine.modes[mode].sampling
    return engine.sampling(
        mode,
        temperature=fields.number(body, "temperature", base.temperature, 0, 2),
        top_p=fields.number(body, "top_p", base.top_p, 0, 1),
        top_k=fields.integer(body, "top_k", base.top_k, -1),
        new_tokens=new_tokens,
    )


def refuse_what_is_not_there(body: Mapping[str, Any]) -> None:
    """Raises `ApiError` for fields that would change the answer and are not followed."""
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.number(body, name, 0.0, -2, 2):
            raise unsupported(name, "there are no penalties; leave it out")
    if fields.mapping(body, "logit_bias"):
        raise unsupported("logit_bias", "leave it out")
    for name in ("functions", "function_call"):
        if body.get(name):
            raise unsupported(name, "use tools and tool_choice")
    form = fields.mapping(body, "response_format").get("type", "text")
    if form != "text":
        raise unsupported(
            "response_format",
            f"{form!r} needs constrained decoding; ask for JSON in the prompt, or use a tool",
        )
    modalities = body.get("modalities")
    if modalities not in (None, [], ["text"]):
        raise unsupported("modalities", "the model writes text")


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages with text as content; developers speak as the system."""
    given = fields.objects(body, "messages")
    if not given:
        raise wrong("messages", "a list of at least one message", body.get("messages"))
    names: dict[str, str] = {}
    messages = [_message(message, f"messages[{i}]", names) for i, message in enumerate(given)]
    return join_system(messages)


def join_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system messages at the beginning as one: templates take one."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if first < 2:
        return messages
    text = "\n\n".join(message["content"] for message in messages[:first])
    return [{"role": "system", "content": text}, *messages[first:]]


def _message(message: dict[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    """`names` are the tools of the calls so far, by the calls' ids."""
    role = message.get("role")
    if role not in _ROLES:
        raise ApiError(400, f"{place}.role must be one of {', '.join(_ROLES)}", f"{place}.role")
    content = text_of(message.get("content"), f"{place}.content")
    if role == "tool":
        call = message.get("tool_call_id")
        if not isinstance(call, str):
            raise wrong(f"{place}.tool_call_id", "the id of a call", call)
        name = names.get(call) or _text(message.get("name")) or "tool"
        return {"role": "tool", "content": content, "tool_call_id": call, "name": name}
    if role != "assistant":
        return {"role": "system" if role == "developer" else role, "content": content}
    found: dict[str, Any] = {"role": role, "content": content}
    reasoning = fields.string(message, "reasoning_content")
    if reasoning:
        found["reasoning_content"] = reasoning
    calls = fields.objects(message, "tool_calls")
    if calls:
        found["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{i}]", names) for i, call in enumerate(calls)
        ]
    return found


def _call(call: dict[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f"{place}.function", 'an object with a "name"', function)
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            400, f"{place}.function.arguments must be a JSON object in text", f"{place}.function"
        )
    identity = str(call.get("id") or "")
    names[identity] = function["name"]
    written = {"name": function["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": identity, "type": "function", "function": written}


def text_of(content: Any, place: str) -> str:
    """The text of a message, which may come in parts. Raises `ApiError` for anything but text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(place, "a text or a list of parts", content)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ApiError(
                400,
                f"{place}[{i}] is of type {kind!r}: {ONLY_TEXT}",
                f"{place}[{i}]",
                "unsupported_content",
            )
        if not isinstance(text, str):
            raise wrong(f"{place}[{i}].text", "a text", text)
        texts.append(text)
    return "".join(texts)


def _tools(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]] | None, str | None]:
    """(tools, the one that must be called as in `Ask.call`)."""
    tools = []
    for i, tool in enumerate(fields.objects(body, "tools")):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise wrong(f"tools[{i}]", 'an object with "type": "function" and "function"', tool)
        kept = {key: function[key] for key in ("name", "description") if function.get(key)}
        kept["parameters"] = function.get("parameters") or {"type": "object", "properties": {}}
        tools.append({"type": "function", "function": kept})
    check_tools(tools)
    choice = body.get("tool_choice") or "auto"
    if not tools:
        if choice not in ("auto", "none"):
            raise wrong("tool_choice", '"auto" or "none" without tools', choice)
        return None, None
    if choice in ("auto", "none", "required"):
        return (None, None) if choice == "none" else (tools, "" if choice == "required" else None)
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return tools, known_tool(tools, name)


def known_tool(tools: Sequence[Mapping[str, Any]], name: Any) -> str:
    """`name`. Raises `ApiError` if it is none of the tools'."""
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise wrong("tool_choice", f"auto, none or one of the tools {', '.join(names)}", name)
    return name


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
