"""Bodies of strangers: whatever the bytes, a JSON object or an error with a status."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.serving import fields
from mmrl.serving.limits import ApiError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=8,
)  # fmt: skip
READERS = (
    lambda body: fields.number(body, "x", 1.0, 0, 2),
    lambda body: fields.integer(body, "x", 1, 0, 9),
    lambda body: fields.boolean(body, "x"),
    lambda body: fields.string(body, "x", ""),
    lambda body: fields.strings(body, "x", 2),
    lambda body: fields.mapping(body, "x"),
    lambda body: fields.objects(body, "x"),
)


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "ignore")))
def test_any_bytes_are_an_object_or_a_400(body):
    try:
        assert isinstance(fields.parse_body(body), dict)
    except ApiError as error:
        assert error.status == 400


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_what_is_json_is_read_as_json_reads_it(value):
    assert fields.parse_body(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "body",
    [
        b'{"x": NaN}',
        b'{"x": -Infinity}',
        b'{"x": 1e999}',
        b'{"x": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"x": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"x": ' + b"[" * 200_000,
        b'{"x": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe{}",
        b"[]",
        b'"text"',
        b"",
    ],
)
def test_numbers_without_end_halves_of_characters_and_deep_nests_are_refused(body):
    with pytest.raises(ApiError) as error:
        fields.parse_body(body)
    assert error.value.status == 400
    assert len(error.value.message) < 200


def test_a_nest_of_sixty_three_lists_is_read():
    body = b'{"x": ' + b"[" * 62 + b"]" * 62 + b"}"
    assert fields.parse_body(body) == json.loads(body)


@given(JSON, st.sampled_from(READERS))
def test_a_field_of_any_json_is_read_or_named_in_the_error(value, read):
    try:
        read({"x": value})
    except ApiError as error:
        assert error.status == 400 and error.parameter == "x" and "x " in error.message
