"""Types become JSON schemas that accept the values that are accepted, and no others."""

import dataclasses
import enum
import inspect
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import pytest

from mmrl.errors import UserError
from mmrl.tools.schema import ArgumentError, bind, convert, parameters_schema, type_schema

jsonschema = pytest.importorskip("jsonschema")


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    names: list[str] = dataclasses.field(default_factory=list)


class Place(TypedDict):
    city: str
    zip: NotRequired[int]


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


TYPES = [
    *(str, int, float, bool, type(None), Any, list, dict, Point, Place, Unit),
    *(list[int], list[list[str]], tuple[int, str], tuple[int, ...], Sequence[float]),
    *(dict[str, int], dict[str, list[bool]], Literal["a", "b"], Literal[1, "a", None]),
    *(Optional[int], str | None, int | str, int | list[int] | None, list[int | None]),  # noqa: UP045
    *(Optional[Literal["a"]], Optional[Point], Point | str, list[Point], dict[str, Point]),  # noqa: UP045
    Annotated[int, "a number"],
]
VALUES = [
    *(None, True, 0, 7, -1, 1.5, 2.0, 10**30, "", "a", "7", "celsius", "CELSIUS", [], {}),
    *([1, 2], [1, "a"], ["a"], [["a"], []], [[1]], [1.5], [None], [True], [1, None]),
    *({"a": 1}, {"a": [True]}, {"x": 1}, {"x": 1.5}, {"x": 1, "y": 2}, {"y": 2}),
    *({"x": 1, "z": 2}, {"x": 1, "names": [1]}, {"x": 1, "names": ["n"]}, [{"x": 1}]),
    *({"p": {"x": 1}}, {"city": "a"}, {"city": "a", "zip": "1"}, {"city": "a", "zip": 1}),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_what_is_converted_is_what_its_schema_accepts(kind):
    schema = type_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        try:
            convert(value, kind, "value")
            converted = True
        except ArgumentError:
            converted = False
        assert converted == validator.is_valid(value), value


def test_values_become_what_the_function_expects():
    converted = [
        (convert({"x": 1.0, "y": 2}, Point, "p"), Point(1, 2.0)),
        (convert([{"x": 1}], list[Point], "p"), [Point(1)]),
        (convert("kelvin", Unit, "u"), Unit.KELVIN),
        (convert([1, "a"], tuple[int, str], "t"), (1, "a")),
        (convert([1, 2, 2], set[int], "s"), {1, 2}),
        (convert(1, int | float, "n"), 1),
        (convert(1.5, int | float, "n"), 1.5),
        (convert(2, float, "n"), 2.0),
    ]
    for ours, expected in converted:
        assert ours == expected
        assert type(ours) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("5", int, "n must be an integer, got '5'"),
        (True, int, "n must be an integer, got True"),
        (float("nan"), float, "n must be a finite number, got nan"),
        (10**400, float, "n must be a finite number"),
        ("c", Literal["a", "b"], r"n must be one of \['a', 'b'\], got 'c'"),
        ([1, "x"], list[int], r"n\[1\] must be an integer, got 'x'"),
        ({"a": {"x": "1"}}, dict[str, Point], r"n.a.x must be an integer, got '1'"),
        ({"x": 1, "nams": []}, Point, "no n's key 'nams'. Did you mean names\\? There are: x, y"),
        ({}, Point, "missing n's key: x"),
        ([], int | str, "n must be integer or string, got"),
        ("x" * 1000, int, "got 'x+…$"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(value, kind, message):
    with pytest.raises(ArgumentError, match=message):
        convert(value, kind, "n")


def weather(city: str, days: int = 1, *, unit: Literal["celsius", "kelvin"] | None = None) -> str:
    return f"{city} {days} {unit}"


def test_arguments_have_types_defaults_and_descriptions():
    schema = parameters_schema(weather, {"city": "where"})
    assert schema == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "days": {"type": "integer", "default": 1},
            "unit": {
                "anyOf": [{"type": "string", "enum": ["celsius", "kelvin"]}, {"type": "null"}],
                "default": None,
            },
        },
        "required": ["city"],
    }


def test_arguments_are_checked_against_the_signature():
    given = {"city": "Rome", "days": 2, "unit": "kelvin"}
    for size in range(4):
        for names in itertools.combinations(given, size):
            arguments = {name: given[name] for name in names}
            try:
                inspect.signature(weather).bind(**arguments)
                fits = True
            except TypeError:
                fits = False
            try:
                assert weather(**bind(weather, arguments)) == weather(**arguments)
                bound = True
            except ArgumentError as error:
                assert "missing argument: city" in str(error)
                bound = False
            assert bound == fits
    with pytest.raises(ArgumentError, match="no argument 'citty'. Did you mean city"):
        bind(weather, {"citty": "Rome"})


def test_functions_that_no_schema_describes_are_mistakes():
    def untyped(x):
        return x

    def positional(*x: int):
        return x

    def foreign(x: object, y: complex):
        return x

    def keys(x: dict[int, str]):
        return x

    for function, message in [
        (untyped, "argument x of untyped needs a type"),
        (positional, "argument x of positional: a tool's arguments have names"),
        (foreign, "argument y of foreign: .*complex.* has no JSON schema"),
        (keys, "keys of a JSON object are text"),
    ]:
        with pytest.raises(UserError, match=message):
            parameters_schema(function, {})
