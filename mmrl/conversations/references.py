"""What a failed response should have been, as far as someone said or showed it.

In this order: the call or the answer that a correction states; calls that went well in a later try;
a later answer that was rated up; for failed calls, that there are any; and else that a judge finds
it better than the failed response.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.conversations.journal import Exchange
from mmrl.conversations.links import Kind, Link, text_of
from mmrl.conversations.read import Feedback
from mmrl.rewards.harvested import COMPARE, GRADE, MATHS, STATED, TOOL_CALLS
from mmrl.rewards.tool_calls import right_calls
from mmrl.text.tool_calls import ToolCall, parse_response

SHORT_WORDS = 8  # a longer answer cannot be expected to be repeated word for word
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_MATHEMATICS = re.compile(r"\\(?:boxed|frac|sqrt|pi)\b")
_SAID = re.compile(
    r"""(?:(?:right|correct|expected)\s+(?:answer|result|value|output)|the\s+answer)
    \s*(?:is|was|would\s+be|should\s+(?:be|have\s+been)|:|=)\s*:?\s*(?P<answer>[^\n]+)""",
    re.VERBOSE | re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:not?|right|wrong|(?:in)?correct|too|un\w+|in|on|at|different|missing|there|here|that|this"
    r"|what|as|supposed)\b",
    re.IGNORECASE,
)
# After these words a number or what stands in quotes is an answer; other words may be a wish.
_HINTED = re.compile(
    r"""(?:should\s+(?:be|have\s+been)|it['’]s|it\s+is|correction:?|^\W*(?:no|nope|wrong)\b)
    [\s,.:;!—–-]*(?P<answer>["“`'][^"”`'\n]+["”`']|[-+]?\$?\d[^\s;]*)""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Reference:
    """The label, and the import path of the reward that compares with it."""

    label: Any
    verifier: str


def reference(
    exchange: Exchange,
    following: Mapping[str, Sequence[Link]],
    feedback: Mapping[str, Feedback],
) -> Reference | None:
    """For a failed exchange; None where it said nothing and nobody else did."""
    own = following.get(exchange.id, ())
    words = [*feedback.get(exchange.id, Feedback()).comments]
    words += [link.words for link in own if link.kind == "correction"]
    for found in (_stated(text, exchange) for text in words):
        if found is not None:
            return found
    for later in _tried_again(exchange, following, ("retry", "correction", "tool", "tool_error")):
        calls = _answers(later, exchange.tools)
        if calls is not None and _went_well(exchange, later, following, feedback):
            return Reference(calls, TOOL_CALLS)
    for later in _tried_again(exchange, following, ("retry", "correction")):
        answer = text_of(later.response)
        rated = feedback.get(later.id, Feedback()).rating
        if rated == "up" and answer and not later.response.get("tool_calls"):
            return compared(answer)
    if any(link.kind == "tool_error" for link in own) and exchange.tools:
        return Reference("any", TOOL_CALLS)
    answer = text_of(exchange.response)
    return Reference(answer, COMPARE) if answer else None


def compared(answer: str) -> Reference:
    """The reference of an answer in words: mathematics, a few words, or a text to grade by."""
    if _NUMBER.fullmatch(answer) or _MATHEMATICS.search(answer):
        return Reference(answer, MATHS)
    return Reference(answer, STATED if len(answer.split()) <= SHORT_WORDS else GRADE)


def _stated(text: str, exchange: Exchange) -> Reference | None:
    """The right call or answer that a person's words contain."""
    if exchange.tools:
        calls = parse_response(text[text.find("{") : text.rfind("}") + 1], "llama3").calls
        calls = calls or parse_response(text, "chatml").calls
        label = possible_answers(calls, exchange.tools) if calls else None
        if label is not None:
            return Reference(label, TOOL_CALLS)
    said, hinted = _SAID.search(text), _HINTED.search(text)
    found = said or hinted
    if found is None:
        return None
    answer = re.split(r"[,;]?\s+(?:not|because|since|instead)\b|\.\s", found["answer"])[0]
    answer = answer.strip().strip("\"'`“”*").rstrip(".!,; ")
    if not answer or _NO_ANSWER.match(answer):
        return None
    stated = compared(answer)
    return stated if stated.verifier != GRADE else None


def _tried_again(
    exchange: Exchange, following: Mapping[str, Sequence[Link]], kinds: Sequence[Kind]
) -> Iterator[Exchange]:
    """Later exchanges that still answer the same: past links of these kinds alone."""
    seen, waiting = {exchange.id}, [exchange]
    while waiting:
        for link in following.get(waiting.pop(0).id, ()):
            if link.kind in kinds and link.later.id not in seen:
                seen.add(link.later.id)
                waiting.append(link.later)
                yield link.later


def _went_well(
    exchange: Exchange,
    later: Exchange,
    following: Mapping[str, Sequence[Link]],
    feedback: Mapping[str, Feedback],
) -> bool:
    """Whether a later try's calls gave results, of the functions that this one called."""
    kinds = {link.kind for link in following.get(later.id, ())}
    rating = feedback.get(later.id, Feedback()).rating
    same = not _called(exchange) or _called(exchange) == _called(later)
    worked = "tool" in kinds and not kinds & {"tool_error", "correction", "retry"}
    return rating != "down" and (rating == "up" or (worked and same))


def _called(exchange: Exchange) -> list[str]:
    calls = exchange.response.get("tool_calls") or ()
    return sorted(str(call["function"].get("name")) for call in calls)


def _answers(exchange: Exchange, tools: Sequence[Mapping[str, Any]] | None) -> list | None:
    """The calls of a response as BFCL's possible answers, None without."""
    calls = []
    for call in exchange.response.get("tool_calls") or ():
        name, arguments = call["function"].get("name"), call["function"].get("arguments")
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            return None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        calls.append(ToolCall(name, arguments))
    return possible_answers(calls, tools or ()) if calls else None


def possible_answers(calls: Iterable[ToolCall], tools: Sequence[Mapping[str, Any]]) -> list | None:
    """The label of `mmrl.rewards.tool_calls` for these calls; None where they do not fit the tools.

    In a dictionary each key has its list of values again. What cannot be said in this form, such as
    a list of dictionaries that the schema does not announce, is no label either.
    """
    calls = list(calls)
    for possible in (_plain, _listed):
        label = [{c.name: {k: [possible(v)] for k, v in c.arguments.items()}} for c in calls]
        try:
            if right_calls(calls, label, tools):
                return label
        except (ValueError, TypeError, AttributeError):
            continue
    return None


def _plain(value: Any) -> Any:
    return value


def _listed(value: Any) -> Any:
    """`value` with the values of dictionaries as lists of one."""
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list) else value
