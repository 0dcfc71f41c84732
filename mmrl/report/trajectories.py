"""A rollout row as the report shows it: what the model drew and what came back, turn by turn.

A segment is a run of the row's mask:
    drawn      whether the model drew these tokens; the others came back from the environment
    start      position of its first token in the response
    length     its tokens
    tokens     list[str], all of them or, of a long segment, the first and the last
    cut_at     index into `tokens` before which the others are left out, only where some are
    logprobs   list[float], one of `tokens` each          only of drawn segments, like these:
    parts      [[kind, end], …]: "thinking", "text" or "call", and where in `tokens` it ends
    calls      [{"name", "arguments": {name: text}} or {"error": text}, …], only if there are any
"""

import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.text.tool_calls import Family, parse_response

MAX_TOKENS = 1500  # of one segment
MAX_EPISODE_TOKENS = 12_000  # of all segments, beyond which each keeps an equal share
MAX_PROMPT = 20_000  # characters
MAX_ARGUMENT = 2_000  # characters; the tokens show all of it

# What begins and ends a block of calls. Llama's closes with the turn, and its tag may be absent.
_MARKS: dict[Family, tuple[str, str | None]] = {
    "m1": ("<tool_calls>", "</tool_calls>"),
    "m2": ("<minimax:tool_call>", "</minimax:tool_call>"),
    "chatml": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>", None),
}
_THINKING_END = re.compile(r"\s*(?:</think>)?")

Span = tuple[str, int, int]  # kind, start, end


def segments(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The segments of a rollout row. A mask of zeros alone, of older files, counts as none."""
    tokens, mask = row["response_tokens"], row.get("mask") or ()
    drawn = mask if any(mask) else [1] * len(tokens)
    runs = [list(run) for _, run in itertools.groupby(range(len(tokens)), drawn.__getitem__)]
    room = MAX_TOKENS
    if len(tokens) > MAX_EPISODE_TOKENS:
        room = min(room, max(2, MAX_EPISODE_TOKENS // len(runs)))
    return [_segment(row, run[0], run[-1] + 1, bool(drawn[run[0]]), room) for run in runs]


def _segment(row: Mapping[str, Any], start: int, end: int, drawn: bool, room: int) -> dict:
    tokens = row["response_tokens"][start:end]
    half = room // 2
    left_out = len(tokens) - 2 * half if len(tokens) > room else 0
    segment: dict[str, Any] = {"drawn": drawn, "start": start, "length": len(tokens)}
    segment["tokens"] = _shortened(tokens, half, left_out)
    if left_out:
        segment["cut_at"] = half
    if drawn:
        logprobs = _shortened(row["logprobs"][start:end], half, left_out)
        spans, calls = read_turn(tokens)
        ends = {_kept(stop, half, left_out): kind for kind, _, stop in reversed(spans)}
        segment["logprobs"] = [None if x is None else round(x, 3) for x in logprobs]
        segment["parts"] = [[kind, stop] for stop, kind in sorted(ends.items())]
        if calls:
            segment["calls"] = calls
    return segment


def _shortened(items: list[Any], half: int, left_out: int) -> list[Any]:
    """The items without `left_out` of them after the first `half`."""
    return items[:half] + items[half + left_out :] if left_out else items


def _kept(index: int, half: int, left_out: int) -> int:
    """Where an index is once `left_out` items after the first `half` are gone."""
    return min(index, max(half, index - left_out)) if left_out else index


def read_turn(tokens: Sequence[str]) -> tuple[list[Span], list[dict]]:
    """(spans of tokens that cover the turn, its calls), by the parser that training uses.

    The family is the one whose mark stands in the text; arguments are shown as text, so that
    their types do not matter. A token on a boundary belongs to the reasoning or the call.
    """
    text = "".join(tokens)
    marked = [name for name, (mark, _) in _MARKS.items() if mark in text]
    family: Family = marked[0] if marked else "llama3"
    parsed = parse_response(text, family, thinking=False)
    special: list[Span] = []
    if parsed.reasoning:
        opened = text.find("<think>") + len("<think>") if _opens(text) else 0
        end = text.index(parsed.reasoning, opened) + len(parsed.reasoning)
        special.append(("thinking", 0, _THINKING_END.match(text, end).end()))  # type: ignore[union-attr]
    if parsed.calls or parsed.errors:
        after = special[0][2] if special else 0
        special += [("call", *block) for block in _blocks(text, after, *_MARKS[family])]
    calls: list[dict] = [
        {"name": call.name, "arguments": {k: _argument(v) for k, v in call.arguments.items()}}
        for call in parsed.calls
    ]
    return _cover(tokens, special), calls + [{"error": error} for error in parsed.errors]


def _opens(text: str) -> bool:
    return text.lstrip().startswith("<think>")


def _blocks(text: str, start: int, mark: str, closing: str | None) -> list[tuple[int, int]]:
    """Where blocks of calls stand, in characters; without the mark all that is left is one."""
    blocks = []
    while (at := text.find(mark, start)) >= 0:
        end = text.find(closing, at) if closing else -1
        start = len(text) if end < 0 or closing is None else end + len(closing)
        blocks.append((at, start))
    return blocks or [(start, len(text))]


def _cover(tokens: Sequence[str], special: Sequence[Span]) -> list[Span]:
    """Spans of characters as spans of tokens, with "text" between them; blank text is no span."""
    ends = list(itertools.accumulate(map(len, tokens)))
    spans: list[Span] = []
    position = 0
    for kind, start, end in [*special, ("text", len(tokens), len(tokens))]:
        if kind != "text":
            start, end = bisect_right(ends, start), bisect_left(ends, end) + 1
        start, end = max(start, position), min(end, len(tokens))
        between = "".join(tokens[position:start])
        if between.strip() or (between and not spans):
            spans.append(("text", position, start))
        elif between:
            spans[-1] = (*spans[-1][:2], start)
        if end > start:
            spans.append((kind, start, end))
        position = max(start, end)
    return spans


def _argument(value: Any) -> str:
    return _clipped(value if isinstance(value, str) else _json(value), MAX_ARGUMENT)


def _clipped(text: str, most: int) -> str:
    """`text`, without its middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-(most // 2) :]}"


def shown_prompt(prompt: Any, tools: Any = None) -> Any:
    """A prompt of text as text, else {"messages": [{"role", "text"}], "tools": [{"name", …}]}.

    What a message has beside its content stands in its text as JSON. An unknown form is JSON.
    """
    tools = tools if isinstance(tools, list) else []
    if isinstance(prompt, list) and all(isinstance(m, Mapping) and "role" in m for m in prompt):
        most = MAX_PROMPT // max(1, len(prompt))
        messages = [
            {"role": str(message["role"]), "text": _clipped(_message_text(message), most)}
            for message in prompt
        ]
    else:
        text = prompt if isinstance(prompt, str) else _json(prompt)
        messages = [{"role": "", "text": _clipped(text, MAX_PROMPT)}]
        if not tools:
            return messages[0]["text"]
    return {"messages": messages, "tools": [_tool(tool) for tool in tools]}


def _message_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, Mapping) and "text" in p for p in content):
        content = "\n".join(str(part["text"]) for part in content)
    elif content is not None and not isinstance(content, str):
        content = _json(content)
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return "\n".join(filter(None, [content, _json(rest) if rest else ""]))


def _tool(tool: Any) -> dict[str, str]:
    """A tool's name, what it does and its parameters, as text."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    function = function if isinstance(function, Mapping) else {}
    schema = function.get("parameters", function.get("input_schema", tool))
    return {
        "name": str(function.get("name", "?")),
        "description": _clipped(str(function.get("description") or ""), MAX_ARGUMENT),
        "parameters": _clipped(_json(schema), MAX_ARGUMENT),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
