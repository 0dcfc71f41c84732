"""Type annotations at run time: check values, convert them from JSON's forms, parse them from text.

Annotations may be int, float, str, bool, Any (JSON's types), Literal, Optional and other unions,
tuple[...], dict[str, ...] and dataclasses. Errors are `UserError`s that start with the dotted key.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from mmrl.errors import UserError, nearest


def is_config(value: Any) -> bool:
    """Whether `value` is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_config_type(kind: Any) -> TypeGuard[type]:
    """Whether `kind` is a dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def field_kinds(cls: type) -> dict[str, Any]:
    """{field name: annotation} of the dataclass `cls`."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Members of a union other than None; a kind that is no union is its own only alternative."""
    if get_origin(kind) not in (Union, types.UnionType):
        return (kind,)
    return tuple(member for member in get_args(kind) if member is not type(None))


def is_optional(kind: Any) -> bool:
    """Whether `kind` is a union with None."""
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def convert(kind: Any, value: Any, key: str, *, plain: bool) -> Any:
    """Checks `value` against `kind`; `plain` accepts JSON's forms and returns the config's.

    JSON's forms are a list for a tuple, an object for a dataclass, and "inf", "-inf" and "nan".
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and is_optional(kind)):
        return value
    if (kind,) != alternatives(kind):
        if plain and (member := _config_member(kind, value)):
            return convert(member, value, key, plain=plain)
        return _first(kind, lambda k: convert(k, value, key, plain=plain), value, key)
    if origin is Literal and any(value == x and type(value) is type(x) for x in args):
        return value
    if is_config_type(kind) and isinstance(value, kind):
        for name, field_kind in field_kinds(type(value)).items():
            convert(field_kind, getattr(value, name), f"{key}.{name}", plain=plain)
        return value
    if plain and is_config_type(kind) and isinstance(value, dict):
        kinds = field_kinds(kind)
        for name in filter(lambda name: name not in kinds, value):
            raise UserError(f"{key}.{name} does not exist.{nearest(name, kinds)}")
        fields = {k: convert(kinds[k], v, f"{key}.{k}", plain=plain) for k, v in value.items()}
        return build(kind, fields, key)
    if origin is dict and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: convert(args[1], v, f"{key}.{k}", plain=plain) for k, v in value.items()}
    if origin is tuple and isinstance(value, tuple | list if plain else tuple):
        return _convert_tuple(kind, value, lambda k, v, at: convert(k, v, at, plain=plain), key)
    if plain and kind is float and value in ("inf", "-inf", "nan"):
        return float(value)
    accepted = {int: int, float: int | float, str: str, bool: bool}.get(kind, ())
    if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
        return float(value) if plain and kind is float else value
    raise _mismatch(kind, value, key)


def parse(kind: Any, text: str, key: str) -> Any:
    """Value of the annotation `kind` written as `text` on a command line.

    int `8` or `1e3`; bool `true` or `false`; Optional `none`; tuple `1,2` or `(1, 2)`;
    dict `{"a": 1}`; str as it is; Any a Python literal or else a str.
    """
    origin = get_origin(kind)
    if is_optional(kind) and text.lower() == "none":
        return None
    if (kind,) != alternatives(kind):
        return _first(kind, lambda k: parse(k, text, key), text, key)
    if is_config_type(kind):
        example = next(iter(field_kinds(kind)))
        raise UserError(f"{key} is a group of settings: set one of them, as in {key}.{example}=…")
    if kind is str:
        return text
    if origin is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise UserError(f"{_mismatch(kind, text, key)}.{nearest(text, choices)}")
        return choices[text]
    if origin is tuple and not text.startswith(("(", "[")):
        parts = [part.strip() for part in text.split(",")]
        parts = parts[:-1] if parts[-1] == "" else parts
        return _convert_tuple(kind, parts, parse, key)
    value = _literal(text)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return convert(kind, value, key, plain=True)


def build(cls: type, fields: dict[str, Any], key: str) -> Any:
    """`cls(**fields)`; what its own validation refuses is an error of `key`."""
    try:
        return cls(**fields)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error


def _literal(text: str) -> Any:
    """The Python literal that `text` spells (with true and false in any case), else `text`."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert_tuple(kind: Any, values: Any, convert_one: Callable, key: str) -> tuple:
    args = get_args(kind)
    kinds = args[:1] * len(values) if args[-1] is Ellipsis else args
    if len(kinds) != len(values):
        raise _mismatch(kind, values, key)
    pairs = enumerate(zip(kinds, values, strict=True))
    return tuple(convert_one(k, value, f"{key}.{index}") for index, (k, value) in pairs)


def _config_member(kind: Any, value: Any) -> type | None:
    """Of several dataclasses in a union the one that `value`, an object of JSON, has most of."""
    members = [member for member in alternatives(kind) if is_config_type(member)]
    if not isinstance(value, dict) or len(members) < 2:
        return None
    return max(members, key=lambda member: len(field_kinds(member).keys() & value.keys()))


def _first(kind: Any, attempt: Callable[[Any], Any], value: Any, key: str) -> Any:
    """What the first alternative of a union accepts; str, which accepts any text, comes last."""
    deeper = None
    for member in sorted(alternatives(kind), key=lambda k: k is str):
        try:
            return attempt(member)
        except UserError as error:
            if not str(error).startswith(f"{key}: expected"):
                deeper = error
    raise deeper or _mismatch(kind, value, key)


def _mismatch(kind: Any, value: Any, key: str) -> UserError:
    return UserError(f"{key}: expected {_words(kind)}, got {value!r} ({type(value).__name__})")


def _words(kind: Any) -> str:
    """`kind` in the words of an error message."""
    if (kind,) != alternatives(kind):
        return " or ".join([*map(_words, alternatives(kind)), *["None"] * is_optional(kind)])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_args(kind):
        return f"a {kind}"
    return {int: "an int", bool: "true or false"}.get(kind) or f"a {kind.__name__}"
