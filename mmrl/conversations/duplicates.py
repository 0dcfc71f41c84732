"""One row for prompts that are the same or nearly the same.

The same: equal messages and tools, whatever their label. The row with the surest verifier stays,
of several the latest, whose label is the newest word on the matter.
Nearly the same: rows of one verifier, label and tools, whose last words of the user's and whose
whole conversations are alike. Pairs are found by MinHash and then measured (`likeness`). The labels
of a judge, free texts, may differ.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmrl.conversations.likeness import bands, likeness
from mmrl.conversations.links import said, text_of
from mmrl.rewards.harvested import JUDGED, VERIFIERS

Row = dict[str, Any]


@dataclass(frozen=True)
class Duplicates:
    """How many rows another one stands for."""

    same: int = 0
    near: int = 0


def without_duplicates(rows: Iterable[Row], threshold: float) -> tuple[list[Row], Duplicates]:
    """The rows that stay, each in the place of its first, with the reasons and ids of all."""
    by_prompt: dict[str, Row] = {}
    same = 0
    for row in rows:
        prompt = _prompt(row)
        if prompt in by_prompt:
            same += 1
            earlier = by_prompt[prompt]
            row = _merged(row if _rank(row) <= _rank(earlier) else earlier, earlier, row)
        by_prompt[prompt] = row
    kept: list[Row] = []
    texts: list[tuple[str, str]] = []  # of the kept rows: the whole conversation, the last question
    places: dict[tuple, list[int]] = defaultdict(list)
    for row in by_prompt.values():
        comparable = _comparable(row)
        text = _whole(row), _question(row)
        keys = [(comparable, band) for band in bands(text[0])]
        candidates = sorted({place for key in keys for place in places[key]})
        alike = next((p for p in candidates if _likeness(texts[p], text) >= threshold), None)
        if alike is not None:
            kept[alike] = _merged(kept[alike], kept[alike], row)
            continue
        for key in keys:
            places[key].append(len(kept))
        kept.append(row)
        texts.append(text)
    return kept, Duplicates(same, len(by_prompt) - len(kept))


def _likeness(first: tuple[str, str], second: tuple[str, str]) -> float:
    """Of the whole conversations or of the last questions, the smaller."""
    return min(map(likeness, first, second))


def _merged(row: Row, *merged: Row) -> Row:
    """`row` with the reasons and exchanges of those that it stands for."""
    metadata = dict(row["metadata"])
    for name in ("reasons", "exchanges"):
        every = [item for one in merged for item in one["metadata"][name]]
        metadata[name] = list(dict.fromkeys(every))
    return row | {"metadata": metadata}


def _rank(row: Row) -> int:
    return VERIFIERS.index(row["metadata"]["verifier"])


def _comparable(row: Row) -> str:
    """Equal for rows that may be one."""
    verifier = row["metadata"]["verifier"]
    label = None if verifier in JUDGED else row["label"]
    return json.dumps([verifier, label, row["tools"]], sort_keys=True)


def _prompt(row: Row) -> str:
    return json.dumps([[said(message) for message in row["prompt"]], row["tools"]], sort_keys=True)


def _whole(row: Row) -> str:
    return "\n".join(said(message) for message in row["prompt"] if message["role"] != "system")


def _question(row: Row) -> str:
    return next((text_of(m) for m in reversed(row["prompt"]) if m["role"] == "user"), "")
