"""What a model wrote: its reasoning, its answer and its tool calls, in each family's format.

Model output is anything at all, so nothing here raises because of it: what cannot be read becomes
an error message for the model. The time is linear in the length of the text.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mmrl.errors import UserError, nearest

Family = Literal["chatml", "llama3", "m1", "m2"]
Tools = Sequence[Mapping[str, Any]]


class ToolCall(NamedTuple):
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ParsedResponse:
    """A response in its parts.

    content    the answer, without reasoning and calls
    reasoning  what stands in <think>, None if there is nothing
    calls      in their order
    errors     what was wrong with other calls, in words for the model
    """

    content: str
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    errors: tuple[str, ...] = ()


def parse_response(
    text: str, family: Family, tools: Tools | None = None, *, thinking: bool | None = None
) -> ParsedResponse:
    """The parts of `text`, a decoded response of a model of `family`, a built-in template's name.

    `tools`, as the chat template had them, give the types of M2's arguments. `thinking` says that
    the prompt ended with an open <think>; None is what the family's own template does. A <think>
    that is never closed ends at the first call. A block of calls that is never closed gives none.
    """
    if family not in _FAMILIES:
        raise UserError(f"no tool call format {family!r}.{nearest(family, _FAMILIES)}")
    opening, parse = _FAMILIES[family]
    reasoning, rest = _split_reasoning(
        text, opening, family == "m2" if thinking is None else thinking
    )
    content, calls = parse(rest, tools or ())
    return ParsedResponse(
        content.strip("\n"),
        reasoning,
        tuple(call for call in calls if isinstance(call, ToolCall)),
        tuple(call for call in calls if isinstance(call, str)),
    )


def _split_reasoning(text: str, opening: str, thinking: bool) -> tuple[str | None, str]:
    """(reasoning, the rest). `opening` begins the first call; a lone </think> stands before it."""
    body = text.lstrip()
    opened = body.startswith("<think>")
    body = body.removeprefix("<think>") if opened else text
    first_call = body.find(opening) if opening in body else len(body)
    close = body.find("</think>", 0, None if opened or thinking else first_call)
    if close >= 0:
        return body[:close].strip("\n") or None, body[close + len("</think>") :]
    if opened or thinking:
        return body[:first_call].strip("\n") or None, body[first_call:]
    return None, text


# A parser returns the content and, in the order of the text, calls and error messages.
_Calls = list[ToolCall | str]


def _parse_m1(text: str, tools: Tools) -> tuple[str, _Calls]:
    """`<tool_calls>`, a call a line, `</tool_calls>`; the first such block counts.

    A line is {"name": "f", "arguments": {…}} (function_call_guide.md of MiniMax-M1), or
    {name: f, arguments: {…}} as the instructions of its chat template spell it.
    """
    before, opened, rest = text.partition("<tool_calls>")
    block, closed, after = rest.partition("</tool_calls>")
    if not opened:
        return text, []
    if not closed:
        return before, [_unclosed("</tool_calls>")]
    lines = filter(None, map(str.strip, block.split("\n")))
    return before + after, [_unquoted_call(line) or _json_call(line) for line in lines]


def _unquoted_call(line: str) -> ToolCall | None:
    """The call in a line {name: f, arguments: {…}}, None for another spelling."""
    first, _, second = line.removeprefix("{").removesuffix("}").partition(",")
    name_key, _, name = first.partition(":")
    arguments_key, _, arguments = second.partition(":")
    if (name_key.strip(), arguments_key.strip()) != ("name", "arguments"):
        return None
    try:
        value = _load(arguments)
    except ValueError:
        return None
    return _call({"name": name.strip().strip("'\"<>"), "arguments": value})


def _parse_chatml(text: str, tools: Tools) -> tuple[str, _Calls]:
    """`<tool_call>`{"name": …, "arguments": {…}}`</tool_call>`, any number: Qwen and Hermes."""
    content, blocks, closed = _cut(text, "<tool_call>", "</tool_call>")
    calls = [_json_call(block) for block in blocks]
    return content, calls if closed else [*calls, _unclosed("</tool_call>")]


def _parse_llama3(text: str, tools: Tools) -> tuple[str, _Calls]:
    """{"name": …, "parameters": {…}}, several with ; between; `<|python_tag|>` may stand before.

    Without the tag, objects of other keys are an answer in JSON and no call.
    """
    before, tag, rest = text.partition("<|python_tag|>")
    content, source = (before, rest) if tag else ("", text)
    calls: _Calls = []
    position = _BETWEEN.match(source).end()  # type: ignore[union-attr]
    while position < len(source):
        try:
            value, end = _DECODER.raw_decode(source, position)
        except (ValueError, RecursionError) as error:
            value, end, problem = None, position, _not_json(error, source[position:])
        else:
            problem = f"{_excerpt(source[position:end])} is not {_FORM}"
        call = _call(value)
        if call is None and not tag and (value is not None or not _BEGUN.match(source, position)):
            return content + source[position:] if calls else text, calls
        calls.append(call or problem)
        if value is None:
            break
        position = _BETWEEN.match(source, end).end()  # type: ignore[union-attr]
    return content, calls


def _parse_m2(text: str, tools: Tools) -> tuple[str, _Calls]:
    """`<minimax:tool_call>` with `<invoke name="f">` and `<parameter name="k">v</parameter>`.

    Values are stripped and typed by the tool's schema, as in the tool calling guide of MiniMax-M2.
    """
    content, blocks, closed = _cut(text, "<minimax:tool_call>", "</minimax:tool_call>")
    calls: _Calls = []
    for block in blocks:
        _, invocations, whole = _cut(block, "<invoke name=", "</invoke>")
        calls += [_invocation(invocation, tools) for invocation in invocations]
        if not whole:
            calls.append(_unclosed("</invoke>"))
        elif not invocations:
            calls.append(f'{_excerpt(block)} holds no <invoke name="…">')
    return content, calls if closed else [*calls, _unclosed("</minimax:tool_call>")]


def _invocation(text: str, tools: Tools) -> ToolCall | str:
    name, _, body = text.partition(">")
    name = name.strip().strip("\"'")
    _, parameters, closed = _cut(body, "<parameter name=", "</parameter>")
    if not name or not closed:
        return _unclosed("</parameter>") if name else f"{_excerpt(text)} names no tool"
    types = _argument_types(name, tools)
    arguments = {}
    for parameter in parameters:
        key, _, value = parameter.partition(">")
        key = key.strip().strip("\"'")
        arguments[key] = _typed(value.strip(), types.get(key, "string"))
    return ToolCall(name, arguments)


def _argument_types(name: str, tools: Tools) -> dict[str, Any]:
    """{argument: its "type"} of the tool's schema."""
    for tool in tools:
        function = tool.get("function") or tool
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties") or {}
            return {
                key: schema.get("type", "string")
                for key, schema in properties.items()
                if isinstance(schema, Mapping)
            }
    return {}


def _typed(value: str, kind: Any) -> Any:
    """`value` as the JSON type `kind`, or as it is where it is not of that type."""
    if value.lower() == "null":
        return None
    if isinstance(kind, list):
        others = [one for one in kind if one not in ("null", "string")]
        kind = others[0] if others else "string"
    try:
        if kind == "integer":
            return int(value)
        if kind == "number":
            number = float(value)
            if not math.isfinite(number):
                return value
            return int(number) if number.is_integer() else number
        if kind == "boolean":
            return value.lower() in ("true", "1")
        if kind in ("object", "array"):
            return _load(value)
    except ValueError:
        return value
    return value


def _cut(text: str, opening: str, closing: str) -> tuple[str, list[str], bool]:
    """(text outside the blocks, the blocks, whether the last one was closed)."""
    outside: list[str] = []
    blocks: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0:
        outside.append(text[position:start])
        start += len(opening)
        end = text.find(closing, start)
        if end < 0:
            return "".join(outside), blocks, False
        blocks.append(text[start:end])
        position = end + len(closing)
    return "".join([*outside, text[position:]]), blocks, True


def _json_call(text: str) -> ToolCall | str:
    try:
        call = _call(_load(text))
    except ValueError as error:
        return _not_json(error, text)
    return call or f"{_excerpt(text)} is not {_FORM}"


def _call(value: Any) -> ToolCall | None:
    """The call that a JSON value describes. Arguments may be JSON text themselves."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = _load(arguments)
        except ValueError:
            return None
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _load(text: str) -> Any:
    """JSON; raises ValueError, also for numbers that are not finite and what nests too deep."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _not_json(error: Exception, text: str) -> str:
    return f"{_excerpt(text)} is not JSON ({error}); write {_FORM}"


def _unclosed(closing: str) -> str:
    return f"a tool call was not closed: {closing} is missing"


def _excerpt(text: str, length: int = 80) -> str:
    text = text.strip()
    return repr(text if len(text) <= length else text[: length - 1] + "…")


_FORM = '{"name": tool, "arguments": {…}}'
_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
_BETWEEN = re.compile(r"[\s;,]*")
_BEGUN = re.compile(r'\{\s*"(?:name|type|parameters|arguments)"\s*:')
# The text that begins the first call, and the parser of what follows the reasoning.
_FAMILIES: dict[str, tuple[str, Callable[[str, Tools], tuple[str, _Calls]]]] = {
    "chatml": ("<tool_call>", _parse_chatml),
    "llama3": ("<|python_tag|>", _parse_llama3),
    "m1": ("<tool_calls>", _parse_m1),
    "m2": ("<minimax:tool_call>", _parse_m2),
}
