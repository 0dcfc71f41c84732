"""Which exchange followed which: a retry, a correction, the results of tools, or the next turn.

A later exchange follows an earlier one where its messages begin with the earlier one's and its
response, or where both are of one session and ask the same. System messages and reasoning do not
count, which clients change and drop.
"""

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrl.conversations.journal import Exchange
from mmrl.conversations.likeness import likeness

Kind = Literal["retry", "correction", "tool", "tool_error", "reply"]
RETRY_LIKENESS = 0.6
_ANY = object()
RETRY_SECONDS = 1.0  # sooner are only the choices of one request, and requests side by side
# How a user's turn begins that says the answer was wrong. English only.
_CORRECTS = re.compile(
    r"""\W*(?:
    no(?!\s*,?\s*(?:thank|problem|worries|need|one|doubt|more|matter|question|idea|longer)|\w)
    | nope\b | wrong\b | incorrect\b | not\s+(?:right|correct|quite|what) | try\s+again
    | (?:that|this|it)(?:'s|’s|\s+is|\s+was)\s+(?:not|wrong|incorrect|false) | that\s+isn['’]t
    | (?:you|your\s+\w+)(?:'re|’re|\s+are|\s+is|\s+was)\s+(?:wrong|incorrect|mistaken)
    | you\s+(?:misunderstood|ignored|forgot|missed) | i\s+(?:said|meant|asked\s+for)\b
    | still\s+(?:wrong|not|incorrect) | the\s+(?:right|correct|expected)\s+\w+\s+(?:is|was)
    | (?:it|that)\s+should\s+(?:be|have) | correction\b
    )""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Link:
    """`later` followed, with these words of the user's where there were any."""

    kind: Kind
    later: Exchange
    words: str = ""


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, its reasoning left out."""
    content = message.get("content") or ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    return content.rpartition("</think>")[2].strip() if isinstance(content, str) else ""


def asked(exchange: Exchange) -> str:
    """The last words of the user's."""
    return next((text_of(m) for m in reversed(exchange.messages) if m["role"] == "user"), "")


def failed(message: Mapping[str, Any]) -> bool:
    """Whether a tool's result is an error: marked as one, or as `mmrl.tools` and MCP write it."""
    if message.get("is_error") is True:
        return True
    text = text_of(message)
    if re.match(r"[\w.]*(?:error|exception)(?::|$)|traceback \(most recent", text, re.IGNORECASE):
        return True
    try:
        value = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value.get("error") or value.get("isError"))


def links(exchanges: Sequence[Exchange]) -> dict[str, list[Link]]:
    """{id of an exchange: what followed it}, for exchanges in order of time."""
    found: dict[str, list[Link]] = defaultdict(list)
    at: dict[tuple, Exchange] = {}  # the last one, by its conversation with the response and whose
    seen: set[tuple[str, bytes]] = set()  # an exchange and what followed it
    last_asked: dict[str, Exchange] = {}  # by session
    for exchange in exchanges:
        followed = set()
        for digest, turn in _turns(exchange):
            known = [at[key] for key in _sought(digest, exchange) if key in at]
            earlier = max(known, key=lambda exchange: exchange.time, default=None)
            if earlier is not None:
                followed.add(earlier.id)
                key = earlier.id, b"".join(_digests(turn)[-1:])
                if turn and key not in seen:  # later exchanges repeat the whole conversation
                    seen.add(key)
                    found[earlier.id].append(_link(earlier, exchange, turn))
        if exchange.session is not None and exchange.messages[-1]["role"] == "user":
            earlier = last_asked.get(exchange.session)
            if earlier and earlier.id not in followed and _tries_again(earlier, exchange):
                found[earlier.id].append(Link("retry", exchange))
            last_asked[exchange.session] = exchange
        digest = _digest(_digests(exchange.messages)[-1], exchange.response)
        at |= dict.fromkeys(_kept(digest, exchange), exchange)
    return dict(found)


def _link(earlier: Exchange, later: Exchange, turn: Sequence[Mapping[str, Any]]) -> Link:
    results = [message for message in turn if message["role"] == "tool"]
    if results:
        return Link("tool_error" if any(map(failed, results)) else "tool", later)
    words = "\n".join(text_of(message) for message in turn if message["role"] == "user")
    if _asks_again(earlier, words):
        return Link("retry", later, words)
    return Link("correction" if _CORRECTS.match(words) else "reply", later, words)


def _kept(digest: bytes, exchange: Exchange) -> Iterator[tuple]:
    """Under which keys an exchange is found by those that can be of the same person."""
    return itertools.product([digest], (exchange.session, _ANY), (exchange.user, _ANY))


def _sought(digest: bytes, exchange: Exchange) -> Iterator[tuple]:
    """A session and a user that both exchanges name must be the same."""
    names = [(_ANY,) if n is None else (n, None) for n in (exchange.session, exchange.user)]
    return itertools.product([digest], *names)


def _tries_again(earlier: Exchange, later: Exchange) -> bool:
    return later.time - earlier.time >= RETRY_SECONDS and _asks_again(earlier, asked(later))


def _asks_again(earlier: Exchange, words: str) -> bool:
    """Alike, and one has all the longer words of the other: else it is another question."""
    before = asked(earlier)
    first, second = (set(re.findall(r"\w{4,}", text.casefold())) for text in (before, words))
    return likeness(before, words) >= RETRY_LIKENESS and (first <= second or second <= first)


def _turns(exchange: Exchange) -> Iterator[tuple[bytes, list[dict[str, Any]]]]:
    """(digest of the messages up to an assistant's, what came before the assistant's next)."""
    digests = _digests(exchange.messages)
    for i, message in enumerate(exchange.messages):
        if message["role"] == "assistant":
            rest = exchange.messages[i + 1 :]
            end = next((n for n, m in enumerate(rest) if m["role"] == "assistant"), len(rest))
            yield digests[i], rest[:end]


def _digests(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Of each prefix of a conversation."""
    found = [b""]
    for message in messages:
        found.append(_digest(found[-1], message))
    return found[1:]


def _digest(before: bytes, message: Mapping[str, Any]) -> bytes:
    if message["role"] in ("system", "developer"):
        return before
    return hashlib.blake2b(before + said(message).encode(), digest_size=16).digest()


def said(message: Mapping[str, Any]) -> str:
    """Role, text and calls of a message as one text, equal whatever else a client adds."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    made = [[call.get("name"), _arguments(call.get("arguments"))] for call in calls]
    return json.dumps([message["role"], text_of(message), made], sort_keys=True)


def _arguments(arguments: Any) -> Any:
    try:
        return json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return arguments
