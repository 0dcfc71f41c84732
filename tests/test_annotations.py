"""Text and values become what the annotation says, or an error names key, value and expectation."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Optional

import pytest

from mmrl.annotations import convert, parse
from mmrl.errors import UserError

Kind = Literal["lightning", "softmax"]


@dataclass(frozen=True)
class Task:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class File:
    path: str
    weight: float = 1.0


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (int, "8", 8),
        (int, "-8", -8),
        (int, "1e3", 1000),
        (int, "1_000", 1000),
        (float, "1e-4", 1e-4),
        (float, "3", 3.0),
        (float, "-inf", -math.inf),
        (bool, "false", False),
        (bool, "True", True),
        (str, "1e3", "1e3"),
        (str, "", ""),
        (str, "none", "none"),
        (int | None, "none", None),
        (int | None, "16", 16),
        (Optional[str], "None", None),  # noqa: UP045
        (Optional[str], "Nones", "Nones"),  # noqa: UP045
        (int | str, "12", 12),
        (str | int, "12", 12),
        (str | int, "twelve", "twelve"),
        (Kind, "softmax", "softmax"),
        (Literal[1, 2], "2", 2),
        (tuple[Kind, ...], "lightning, softmax", ("lightning", "softmax")),
        (tuple[Kind, ...], "('softmax',)", ("softmax",)),
        (tuple[int, ...], "1,", (1,)),
        (tuple[int, ...], "", ()),
        (tuple[int, str], "1,a", (1, "a")),
        (tuple[tuple[str, int], ...], "[('data', 2), ('tensor', 4)]", (("data", 2), ("tensor", 4))),
        (dict[str, float], '{"format": 1}', {"format": 1.0}),
        (Any, "3", 3),
        (Any, "true", True),
        (Any, "plus", "plus"),
        (Any, "[1, 'a']", [1, "a"]),
    ],
)
def test_text_is_parsed_by_the_annotation(kind, text, expected):
    value = parse(kind, text, "key")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (int, "2.5", r"^key: expected an int, got 2\.5 \(float\)$"),
        (int, "inf", r"^key: expected an int, got 'inf' \(str\)$"),
        (int, "many", r"^key: expected an int, got 'many'"),
        (int, "true", r"^key: expected an int, got True"),
        (int | None, "x", r"^key: expected an int or None, got 'x'"),
        (float, "fast", r"^key: expected a float, got 'fast'"),
        (bool, "1", r"^key: expected true or false, got 1 \(int\)"),
        (Kind, "softmx", r"^key: expected one of 'lightning', 'softmax', got 'softmx'.*softmax\?$"),
        (tuple[Kind, ...], "softmax,x", r"^key\.1: expected one of"),
        (tuple[float, float], "0.9", r"^key: expected a tuple\[float, float\], got \['0\.9'\]"),
        (tuple[int, ...], "(1", r"^key: expected a tuple\[int, \.\.\.\], got '\(1'"),
        (dict[str, float], "a", r"^key: expected a dict\[str, float\], got 'a'"),
        (dict[str, float], "{'a': 'b'}", r"^key\.a: expected a float, got 'b'"),
        (Task, "sum", r"^key is a group of settings: set one of them, as in key\.name="),
    ],
)
def test_wrong_text_names_the_key_the_text_and_what_is_expected(kind, text, message):
    with pytest.raises(UserError, match=message):
        parse(kind, text, "key")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(float, 1), (int | None, None), (Task, Task("a")), (tuple[int, ...], ()), (Any, object())],
)
def test_value_of_its_annotation_is_returned_as_it_is(kind, value):
    assert convert(kind, value, "key", plain=False) is value or value == ()


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, 4.0, r"^key: expected an int, got 4\.0 \(float\)$"),
        (bool, 1, r"^key: expected true or false, got 1"),
        (float, "1e-3", r"^key: expected a float, got '1e-3'"),
        (float, True, r"^key: expected a float, got True"),
        (float, None, r"^key: expected a float, got None"),
        (tuple[int, ...], [1], r"^key: expected a tuple\[int, \.\.\.\], got \[1\]"),
        (tuple[Task, ...], (Task("a"), Task(3)), r"^key\.1\.name: expected a str, got 3"),
        (Task, {"name": "a"}, r"^key: expected a Task, got \{"),
        (Task | None, Task("a", "b"), r"^key\.weight: expected a float, got 'b'"),
        (dict[str, float], {1: 1.0}, r"^key: expected a dict\[str, float\]"),
        (int | Literal["auto"], "all", r"^key: expected an int or one of 'auto', got 'all'"),
    ],
)
def test_value_of_another_type_is_refused(kind, value, message):
    with pytest.raises(UserError, match=message):
        convert(kind, value, "key", plain=False)


@pytest.mark.parametrize("kind", [Task | File, File | Task, Task | File | None])
def test_an_object_becomes_the_dataclass_of_a_union_whose_fields_it_has(kind):
    for config in (Task("a", 2.0), File("b")):
        assert convert(kind, config, "key", plain=False) is config
        assert convert(kind, vars(config), "key", plain=True) == config
    with pytest.raises(UserError, match=r"^key\.pth does not exist\. Did you mean path\?"):
        convert(kind, {"path": "b", "pth": "c"}, "key", plain=True)
    with pytest.raises(UserError, match=r"^key\.name: expected a str, got 3"):
        convert(kind, {"name": 3}, "key", plain=True)
    with pytest.raises(UserError, match=r"^key\.path: expected a str, got 3"):
        convert(kind, File(3), "key", plain=False)
    with pytest.raises(UserError, match=r"^key: expected a (Task or a File|File or a Task)"):
        convert(kind, {"name": "a"}, "key", plain=False)


def test_json_forms_become_the_configs_own():
    kind = tuple[Task, ...]
    assert convert(kind, [{"name": "a", "weight": "inf"}], "key", plain=True) == (
        Task("a", math.inf),
    )
    with pytest.raises(UserError, match=r"^key\.0\.wieght does not exist\. Did you mean weight\?"):
        convert(kind, [{"name": "a", "wieght": 1}], "key", plain=True)
