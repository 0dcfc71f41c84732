"""Python's types as JSON schemas, and JSON values as Python's types.

str, int, float, bool, None, Any, Literal, Enum, list, tuple, set, dict with text keys, Optional and
other unions, Annotated, TypedDict and dataclasses, in any nesting.
"""

import collections.abc
import dataclasses
import enum
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmrl.errors import UserError, nearest

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS: tuple[type, ...] = (
    *(list, set, frozenset, tuple),
    *(collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set),
)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class ArgumentError(ValueError):
    """Arguments that do not fit; the message, for the model, says what was expected."""


def parameters_schema(function: Callable, descriptions: Mapping[str, str]) -> dict[str, Any]:
    """The JSON schema of the arguments of `function`. Raises `UserError` for what has none."""
    hints = _hints(function)
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        place = f"argument {name} of {function.__name__}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"{place}: a tool's arguments have names, got {parameter}")
        if name not in hints:
            raise UserError(f"{place} needs a type, as in {name}: str")
        schema = type_schema(hints[name], place)
        if name in descriptions:
            schema["description"] = descriptions[name]
        if parameter.default is parameter.empty:
            required.append(name)
        elif _is_json(parameter.default):
            schema["default"] = parameter.default
        properties[name] = schema
    return {"type": "object", "properties": properties, "required": required}


def type_schema(kind: Any, place: str = "a type") -> dict[str, Any]:
    """The JSON schema of a type. Raises `UserError` with `place` for one that has none."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return {}
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    if origin is Annotated:
        notes = [note for note in inner[1:] if isinstance(note, str)]
        return type_schema(inner[0], place) | ({"description": notes[0]} if notes else {})
    if origin is Literal:
        return _enumeration(inner)
    if origin in (Union, types.UnionType):
        return _union([type_schema(one, place) for one in inner])
    if origin is tuple and inner and inner[-1] is not ...:
        items = [type_schema(one, place) for one in inner]
        count = len(items)
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
    if (origin or kind) in _LISTS:
        unique = {"uniqueItems": True} if issubclass(origin or kind, collections.abc.Set) else {}
        return {"type": "array", "items": type_schema(inner[0], place) if inner else {}} | unique
    if (origin or kind) in _DICTS:
        if inner and inner[0] is not str:
            raise UserError(f"{place}: keys of a JSON object are text, got {kind}")
        values = {"additionalProperties": type_schema(inner[1], place)} if inner else {}
        return {"type": "object"} | values
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enumeration([member.value for member in kind])
    fields = _fields(kind)
    if fields is None:
        raise UserError(f"{place}: {kind} has no JSON schema")
    return {
        "type": "object",
        "properties": {name: type_schema(hint, place) for name, (hint, _) in fields.items()},
        "required": [name for name, (_, needed) in fields.items() if needed],
        "additionalProperties": False,
    }


def bind(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` as the types of `function`'s. Raises `ArgumentError` for what does not fit."""
    hints = _hints(function)
    parameters = inspect.signature(function).parameters
    _check_names(
        arguments,
        parameters,
        [name for name, p in parameters.items() if p.default is p.empty],
        "argument",
    )
    return {name: convert(value, hints[name], name) for name, value in arguments.items()}


def convert(value: Any, kind: Any, place: str) -> Any:
    """A JSON value as the type `kind`, or `ArgumentError` with `place`.

    A whole number passes as a float and a float that is whole as an integer; text is never read
    as a number.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return value
    if kind in _NAMES:
        return _plain(value, kind, place)
    if origin is Annotated:
        return convert(value, inner[0], place)
    if origin is Literal:
        return _one_of(value, {one: one for one in inner}, place)
    if origin in (Union, types.UnionType):
        return _first_fitting(value, inner, place)
    if (origin or kind) in _LISTS:
        return _items(value, origin or kind, inner, place)
    if (origin or kind) in _DICTS:
        _require(isinstance(value, dict), "an object", value, place)
        return {k: convert(v, inner[1] if inner else Any, f"{place}.{k}") for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one_of(value, {member.value: member for member in kind}, place)
    fields = _fields(kind) or {}
    _require(isinstance(value, dict), "an object", value, place)
    _check_names(
        value, fields, [n for n, (_, needed) in fields.items() if needed], f"{place}'s key"
    )
    values = {name: convert(v, fields[name][0], f"{place}.{name}") for name, v in value.items()}
    return values if typing.is_typeddict(kind) else kind(**values)


def _plain(value: Any, kind: type, place: str) -> Any:
    article = {"integer": "an integer", "null": "null"}.get(_NAMES[kind], f"a {_NAMES[kind]}")
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            fits = number and math.isfinite(value)
        except OverflowError:
            fits = False
        _require(fits, "a finite number", value, place)
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    _require(right, article, value, place)
    return value


def _one_of(value: Any, choices: Mapping[Any, Any], place: str) -> Any:
    for choice, meant in choices.items():
        if type(choice) is type(value) and choice == value:
            return meant
    raise ArgumentError(f"{place} must be one of {list(choices)}, got {_shown(value)}")


def _first_fitting(value: Any, kinds: tuple, place: str) -> Any:
    """Of the exact type first, so that 1 of int | float remains an int."""
    for kind in sorted(kinds, key=lambda one: type(value) is not one):
        try:
            return convert(value, kind, place)
        except ArgumentError as error:
            problem = error
    plain = [one for one in kinds if one is not type(None)]
    if len(plain) == 1:
        raise problem
    expected = " or ".join(str(type_schema(one).get("type", one)) for one in kinds)
    raise ArgumentError(f"{place} must be {expected}, got {_shown(value)}")


def _items(value: Any, origin: type, inner: tuple, place: str) -> Any:
    _require(isinstance(value, list), "a list", value, place)
    kinds = [inner[0] if inner else Any] * len(value)
    if origin is tuple and inner and inner[-1] is not ...:
        _require(len(value) == len(inner), f"a list of {len(inner)}", value, place)
        kinds = list(inner)
    items = [convert(v, kind, f"{place}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds))]
    if not issubclass(origin, collections.abc.Set):
        return tuple(items) if origin is tuple else items
    try:
        return frozenset(items) if origin is frozenset else set(items)
    except TypeError:
        raise ArgumentError(f"{place} must hold values that can be compared") from None


def _check_names(given: Mapping, known: Mapping, required: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            there = ", ".join(known) or "none"
            raise ArgumentError(f"no {what} {name!r}.{nearest(name, known)} There are: {there}")
    missing = [name for name in required if name not in given]
    if missing:
        raise ArgumentError(f"missing {what}: {', '.join(missing)}")


def _require(fits: bool, expected: str, value: Any, place: str) -> None:
    if not fits:
        raise ArgumentError(f"{place} must be {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _hints(function: Callable) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:
        raise UserError(f"the types of {function.__name__} cannot be read: {error}") from error


def _fields(kind: Any) -> dict[str, tuple[Any, bool]] | None:
    """{field: (type, required)} of a dataclass or TypedDict, None for other types."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind, include_extras=True)
        missing = dataclasses.MISSING
        return {
            field.name: (
                hints[field.name],
                field.default is missing and field.default_factory is missing,
            )
            for field in dataclasses.fields(kind)
            if field.init
        }
    if typing.is_typeddict(kind):
        hints = get_type_hints(kind)
        return {name: (hint, name in kind.__required_keys__) for name, hint in hints.items()}
    return None


def _enumeration(values: Any) -> dict[str, Any]:
    names = {_NAMES.get(type(value)) for value in values}
    kind = {"type": names.pop()} if len(names) == 1 and None not in names else {}
    return kind | {"enum": list(values)}


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain types become a list of names, which is what the parsers of calls understand."""
    if all(set(schema) == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    others = [schema for schema in schemas if schema != {"type": "null"}]
    if len(others) == 1 and isinstance(others[0].get("type"), str) and "enum" not in others[0]:
        return others[0] | {"type": [others[0]["type"], "null"]}
    return {"anyOf": schemas}


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
