"""Requests to call tools with possible answers, from the Berkeley Function Calling Leaderboard.

Its single-turn sets with tools in Python's types, as the package bfcl-eval (Apache-2.0) carries
them; the package is read and never imported.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.data.records import Example
from mmrl.data.tasks import is_held_out
from mmrl.errors import UserError, nearest
from mmrl.packages import package_folder

CATEGORIES = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
SETTINGS = ("characters", "tool_format")
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def bfcl_examples(
    datasets: Mapping[str, Mapping[str, Any]], *, held_out: bool, held_out_every: int
) -> list[Example]:
    """The examples of one split of the categories, in the order of `datasets` and of the files.

    Args:
      datasets: {category: settings}. Settings are `characters`, the most that the messages and
        the tools may have as JSON, and `tool_format`, the family of the calls in responses.
      held_out: the split is by a hash of the id (see `is_held_out`). A question that stands under
        several ids, as many of "multiple" and "simple_python" do, goes where its first id goes.

    A prompt is chat messages with tools in JSON schema. The label and the metadata are those of
    `mmrl.rewards.tool_calls`; the metadata also have `dataset`, the category, and `id`. Raises
    `UserError` without the package, for an unknown category or setting, and for an empty split.
    """
    examples = []
    for category, settings in datasets.items():
        if category not in CATEGORIES:
            hint = nearest(category, CATEGORIES) or f" There are {', '.join(CATEGORIES)}."
            raise UserError(f"bfcl has no category {category!r}.{hint}")
        for key in settings:
            if key not in SETTINGS:
                raise UserError(
                    f"bfcl category {category} has no setting {key!r}.{nearest(key, SETTINGS)}"
                )
        most = settings.get("characters", float("inf"))
        answers = _answers(category)
        for row in _rows(category):
            messages, tools = row["question"][0], [_tool(f) for f in row["function"]]
            if is_held_out(_first_ids()[_question(row)], held_out_every) != held_out:
                continue
            if len(json.dumps(messages)) + len(json.dumps(tools)) > most:
                continue
            metadata = {"dataset": category, "id": row["id"], "tools": tools}
            if "tool_format" in settings:
                metadata["tool_format"] = settings["tool_format"]
            examples.append(Example(messages, answers[row["id"]], metadata, tools))
    if not examples:
        split = "held-out" if held_out else "training"
        raise UserError(f"bfcl has no {split} examples with datasets={dict(datasets)}")
    return examples


def _answers(category: str) -> Mapping[str, Any]:
    """{id: label}."""
    if "irrelevance" in category:
        return {row["id"]: [] for row in _rows(category)}
    if "relevance" in category:
        return {row["id"]: "any" for row in _rows(category)}
    return {row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/{category}")}


def _rows(name: str) -> list[dict[str, Any]]:
    *folder, category = name.split("/")
    data = package_folder("bfcl_eval", "bfcl-eval==2026.3.23") / "data"
    path = data.joinpath(*folder, f"BFCL_v4_{category}.json")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@functools.cache
def _first_ids() -> dict[str, str]:
    """{question: the first id that it stands under}."""
    rows = [row for category in CATEGORIES for row in _rows(category)]
    return {_question(row): row["id"] for row in reversed(rows)}


def _question(row: Mapping[str, Any]) -> str:
    messages: Sequence[Mapping[str, str]] = row["question"][0]
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {**function, "parameters": _schema(function["parameters"])},
    }


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """BFCL's schema as JSON schema; its "any" is no type."""
    converted = {key: value for key, value in schema.items() if (key, value) != ("type", "any")}
    if "type" in converted:
        converted["type"] = _TYPES.get(schema["type"], schema["type"])
    if isinstance(schema.get("properties"), Mapping):
        properties = schema["properties"].items()
        converted["properties"] = {name: _schema(value) for name, value in properties}
    if isinstance(schema.get("items"), Mapping):
        converted["items"] = _schema(schema["items"])
    return converted
