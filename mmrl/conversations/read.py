"""Reads journals back: the exchanges in order of time, and the feedback that each was given."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.conversations.journal import RATINGS, Exchange
from mmrl.errors import UserError, nearest

_FIELDS = {f.name: f for f in dataclasses.fields(Exchange)}
_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "time": (int, float),
    "messages": (list,),
    "response": (dict,),
    "tools": (list, type(None)),
    "session": (str, type(None)),
    "user": (str, type(None)),
    "reward": (int, float, type(None)),
}


@dataclass(frozen=True)
class Feedback:
    """All that was said of one exchange: the last rating and reward, and every comment."""

    rating: str | None = None
    reward: float | None = None
    comments: tuple[str, ...] = ()


@dataclass
class Conversations:
    """What a journal holds.

    exchanges  by time, each id once
    feedback   {id of its exchange: what was said}
    problems   "file:line: reason" of each line that was skipped
    """

    exchanges: list[Exchange] = field(default_factory=list)
    feedback: dict[str, Feedback] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_journals(sources: Iterable[Path]) -> Conversations:
    """Every line of journal files, and of folders with such files, that can be read.

    A line that cannot be is skipped and told among the problems, feedback whose exchange is not
    there too. Raises `UserError` for a source that is no journal.
    """
    found = Conversations()
    exchanges: dict[str, Exchange] = {}
    said: list[tuple[str, dict[str, Any]]] = []
    for file in (file for source in sources for file in _files(source)):
        for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                entry = _entry(line)
                if entry["kind"] == "exchange":
                    exchange = _exchange(entry)
                    exchanges[exchange.id] = exchange
                else:
                    said.append((f"{file}:{number}", _feedback(entry)))
            except ValueError as error:
                found.problems.append(f"{file}:{number}: {error}")
    found.exchanges = sorted(exchanges.values(), key=lambda exchange: exchange.time)
    for place, entry in sorted(said, key=lambda item: item[1]["time"]):
        name = entry["exchange"]
        if name in exchanges:
            found.feedback[name] = _joined(found.feedback.get(name, Feedback()), entry)
        else:
            found.problems.append(f"{place}: feedback of an exchange that is not here, {name!r}")
    return found


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        beside = [str(path) for path in source.parent.glob("*")]
        raise UserError(f"no journal {source}.{nearest(str(source), beside)}")
    if (source / "metrics.jsonl").exists():
        raise UserError(f"{source} is the directory of a run; name a folder that serving wrote")
    files = sorted(source.glob("*.jsonl"))
    if not files:
        raise UserError(f"the journal {source} has no .jsonl file yet")
    yield from files


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(entry, dict) or entry.get("kind") not in ("exchange", "feedback"):
        raise ValueError("neither an exchange nor feedback")
    return entry


def _exchange(entry: Mapping[str, Any]) -> Exchange:
    required = [n for n, f in _FIELDS.items() if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in entry]
    if missing:
        raise ValueError(f"the exchange has no {', '.join(missing)}")
    for name, kinds in _KINDS.items():
        if not isinstance(entry.get(name), kinds) or isinstance(entry.get(name), bool):
            raise ValueError(f"{name} of the exchange is {entry[name]!r:.80}")
    messages = [*entry["messages"], entry["response"]]
    if len(messages) < 2 or not all(map(_is_message, messages)):
        raise ValueError("a message of the exchange has no role, or calls that are none")
    if not all(isinstance(tool, dict) for tool in entry["tools"] or ()):
        raise ValueError("a tool of the exchange is no object")
    return Exchange(**{name: entry[name] for name in _FIELDS if name in entry})


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    calls = message.get("tool_calls") or []
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    )


def _feedback(entry: dict[str, Any]) -> dict[str, Any]:
    rating, comment, reward = (entry.get(name) for name in ("rating", "comment", "reward"))
    if not isinstance(entry.get("exchange"), str):
        raise ValueError("feedback names no exchange")
    if rating not in (None, *RATINGS):
        raise ValueError(f"the rating {rating!r:.40} is none of {', '.join(RATINGS)}")
    if not isinstance(comment, str | None) or not isinstance(reward, int | float | None):
        raise ValueError("feedback needs a text as its comment and a number as its reward")
    if not isinstance(entry.get("time"), int | float):
        raise ValueError("feedback has no time")
    return entry


def _joined(earlier: Feedback, entry: Mapping[str, Any]) -> Feedback:
    rating, comment, reward = (entry.get(name) for name in ("rating", "comment", "reward"))
    return Feedback(
        earlier.rating if rating is None else rating,
        earlier.reward if reward is None else reward,
        (*earlier.comments, comment) if comment else earlier.comments,
    )
