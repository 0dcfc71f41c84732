"""Tool calls as a reward, compared as BFCL's AST checker does: `mmrl.rewards.tool_calls:score`.

`graded` gives partial credit, for models that are seldom right at the start.

BFCL is the Berkeley Function Calling Leaderboard (package bfcl-eval). The label is its list of
possible answers, a dictionary a call: {function: {argument: [values that are right]}}, where the
value "" says that the argument may be left out. An empty list says that no call is right, and the
label "any" that any call is.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.data.records import Sample
from mmrl.text.tool_calls import ToolCall, parse_response

# BFCL's names of types and JSON schema's. BFCL has text where anything may stand.
TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "number": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "object": dict,
    "any": str,
}
OMITTED = ""
Answer = Mapping[str, Mapping[str, Sequence[Any]]]
Schema = Mapping[str, Any]


def score(sample: Sample) -> dict[str, float]:
    """Compares the calls in `sample.response` with the label.

    The metadata holds `tools`, the descriptions in JSON schema's or BFCL's types, and may hold
    `tool_format`, a family of `mmrl.text.parse_response`, by default "chatml".

    Returns: `reward` and `solved`, 1 where the calls are right, in any order; `functions`, 1 where
    the functions are; `format`, 1 where all that was called could be read; and `called`, 1 where
    there was something to read besides. A call that cannot be read is wrong, also where none is
    right. Raises ValueError for a label of another form.
    """
    label, tools = sample.label, sample.metadata.get("tools")
    if not (label == "any" or (isinstance(label, list) and all(map(_is_answer, label)))):
        raise ValueError(f"the label must be BFCL's possible answers or 'any', got {label!r:.200}")
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"metadata['tools'] must be a list of descriptions, got {tools!r:.200}")
    family = sample.metadata.get("tool_format", "chatml")
    response = parse_response(sample.response, family, tools)
    readable = not response.errors
    if label == "any":
        functions = solved = bool(response.calls)
    else:
        expected = sorted(name for answer in label for name in answer)
        functions = sorted(call.name for call in response.calls) == expected
        solved = functions and right_calls(response.calls, label, tools)
    solved &= readable
    return {
        "reward": float(solved),
        "solved": float(solved),
        "functions": float(functions),
        "format": float(readable),
        "called": float(readable and bool(response.calls)),
    }


def graded(sample: Sample) -> dict[str, float]:
    """`score` with steps on the way: ¼ for readable calls, ½ for calls of the right functions.

    Both are conditions of a right answer, so that nothing is learned on the way that must be
    unlearned. Where no call is right, or any, there are no steps.
    """
    components = score(sample)
    if not components["solved"] and components["called"] and isinstance(sample.label, list):
        expected = bool(sample.label)
        components["reward"] = expected * (0.5 if components["functions"] else 0.25)
    return components


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, Mapping) and len(answer) == 1


def right_calls(calls: Sequence[ToolCall], answers: Sequence[Answer], tools: Sequence) -> bool:
    """Whether calls and possible answers can be paired one to one, in any order.

    BFCL gives each answer the first call that fits, which may leave none for a later answer; here
    the pairs are found by augmenting paths, so that the order never counts.
    """
    if len(calls) != len(answers):
        return False
    fits = [[right_call(call, answer, tools) for call in calls] for answer in answers]
    answer_of: dict[int, int] = {}

    def place(answer: int, tried: set[int]) -> bool:
        for call in range(len(calls)):
            if fits[answer][call] and call not in tried:
                tried.add(call)
                if call not in answer_of or place(answer_of[call], tried):
                    answer_of[call] = answer
                    return True
        return False

    return all(place(answer, set()) for answer in range(len(answers)))


def right_call(call: ToolCall, answer: Answer, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `call` is of the answer's function, with right values of the described types."""
    [(name, possible)] = answer.items()
    functions = [tool.get("function") or tool for tool in tools]
    schema = next((f.get("parameters") or {} for f in functions if f.get("name") == name), None)
    if schema is None:
        raise ValueError(f"the label calls {name!r}, which is none of the tools")
    properties: Mapping[str, Schema] = schema.get("properties") or {}
    if call.name != name or any(key not in call.arguments for key in schema.get("required") or ()):
        return False
    missing = possible.keys() - call.arguments.keys()
    return all(OMITTED in possible[key] for key in missing) and all(
        key in properties and key in possible and right_value(value, possible[key], properties[key])
        for key, value in call.arguments.items()
    )


def right_value(value: Any, possible: Sequence[Any], schema: Schema) -> bool:
    """Whether an argument has the schema's type, or that of the possible values, and is among them.

    An integer is a float too, and no bool is an integer. Text is compared as `normalised` says,
    also within lists and dictionaries. Where the possible values are of another type than the
    schema's (BFCL: a variable in place of a value), only an equal value is right.
    """
    expected = _type(schema)
    if expected is float and type(value) is int:
        value = float(value)
    kind = _kind(possible)
    if type(value) is expected:
        literal = kind in (None, expected)
        item = _type(schema.get("items") or {}) if expected is list else None
        if item is not None and not any(_items_are(item, value, right) for right in possible):
            return False
    elif type(value) is kind:
        literal, item = False, None
    else:
        return False
    if literal and expected is dict:
        return any(_right_dict(value, right) for right in possible if right != OMITTED)
    if literal and item is dict:
        return any(_right_dicts(value, right) for right in possible)
    if literal and expected is list:
        return normalised(value) in [normalised(list(right)) for right in possible]
    if literal and expected is str:
        return normalised(value) in map(normalised, possible)
    return value in possible


def normalised(value: Any) -> Any:
    """Text without spaces and , . / - _ * ^, in lower case and with double quotes; in lists too."""
    if isinstance(value, list):
        return [normalised(item) if isinstance(item, str) else item for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


def _type(schema: Schema) -> type:
    """The type of a schema: of several the first that is not null, text for one that is unknown."""
    kinds = schema.get("type", "any")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return next((TYPES[kind] for kind in kinds if kind in TYPES), str)


def _kind(possible: Sequence[Any]) -> type | None:
    """The type of the first value that is not `OMITTED`."""
    return next((type(value) for value in possible if value != OMITTED), None)


def _items_are(item: type, value: Any, right: Any) -> bool:
    """Whether the items have the type of the schema, or that of the items of a right list."""
    if not isinstance(right, list):
        return True
    return all(type(one) in (item, _kind(right)) for one in value)


def _right_dict(value: Any, right: Any) -> bool:
    """`right` is {key: possible values}."""
    if not isinstance(value, dict) or not isinstance(right, dict):
        return False
    return all(OMITTED in right[key] for key in right.keys() - value.keys()) and all(
        key in right and normalised_in(one, right[key]) for key, one in value.items()
    )


def _right_dicts(value: Any, right: Any) -> bool:
    return len(value) == len(right) and all(map(_right_dict, value, right))


def normalised_in(value: Any, possible: Sequence[Any]) -> bool:
    return (normalised(value) if isinstance(value, str) else value) in [
        normalised(right) if isinstance(right, str) else right for right in possible
    ]
