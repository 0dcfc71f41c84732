"""What is read of a response does not depend on the pieces in which it came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.serving.responses import ResponseReader, StopFinder
from mmrl.text import parse_response

TOOLS = [
    {
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        }
    }
]
RESPONSES = {
    "chatml": [
        "two\n\nlines",
        "<think>\nwhy\n</think>\n\nThus\n<tool_call>\n"
        '{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {"x": "</think>"}}</tool_call> done',
        "<think>a <tool_call> in thoughts</think>none",
        '<think>never closed<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "less < than <tool> <tool_calling>",
    ],
    "llama3": [
        '{"name": "f", "parameters": {"x": 1}}',
        '{"answer": {"x": 1}}',
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": {}}}',
        "a set {1, 2}",
        "",
    ],
    "m1": [
        'first\n<tool_calls>\n{"name": "f", "arguments": {"x": 1}}\n'
        "{name: g, arguments: {}}\n</tool_calls>\n",
        "<think>\nwhy\n</think>\nso",
    ],
    "m2": [
        'look\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n'
        '</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',
    ],
}
CASES = [(family, text) for family, texts in RESPONSES.items() for text in texts]


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in zip(places, places[1:])]


def read(reader: ResponseReader, pieces: list[str]):
    parts = [*map(reader.push, pieces), reader.finish()]
    return (
        "".join(p.reasoning for p in parts),
        "".join(p.content for p in parts),
        [call for p in parts for call in p.calls],
        sum(p.malformed for p in parts),
    )


@pytest.mark.parametrize("family, text", CASES)
@given(cuts=st.lists(st.integers(0, 500), max_size=12))
def test_pieces_give_what_the_parser_finds_in_the_whole(family, text, cuts):
    expected = parse_response(text, family, TOOLS, thinking=False)
    reasoning, content, calls, malformed = read(
        ResponseReader(family, TOOLS), pieces_of(text, cuts)
    )
    assert reasoning == (expected.reasoning or "")
    assert content.split() == expected.content.split()
    assert content == content.strip("\n")
    assert tuple(calls) == expected.calls and malformed == len(expected.errors)


def test_cases_have_thoughts_words_and_calls():
    parsed = [parse_response(text, family, TOOLS, thinking=False) for family, text in CASES]
    assert sum(p.reasoning is not None for p in parsed) >= 4
    assert sum(bool(p.content) for p in parsed) >= 6
    assert sum(len(p.calls) for p in parsed) >= 10


def test_words_come_before_the_response_has_ended():
    reader = ResponseReader("chatml", TOOLS)
    assert reader.push("Hello <to").content == "Hello "
    assert reader.push("day>").content == "<today>"


def test_a_call_comes_when_it_is_closed():
    reader = ResponseReader("chatml", TOOLS)
    assert not reader.push('<tool_call>{"name": "f", "arguments": {}}').calls
    assert [c.name for c in reader.push('</tool_call><tool_call>{"name"').calls] == ["f"]


def test_thoughts_that_the_prompt_has_opened_end_at_their_mark():
    found = read(ResponseReader("chatml", TOOLS, thinking=True), ["why\n</th", "ink>\n\nso"])
    assert found == ("why", "so", [], 0)


def test_calls_that_nobody_can_read_are_words():
    text = '<tool_call>{"name": f}</tool_call>'
    assert read(ResponseReader("chatml", TOOLS), [text]) == ("", text, [], 1)


def test_without_tools_a_call_is_words():
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(ResponseReader(None), [text[:20], text[20:]]) == ("", text, [], 0)


def test_a_call_that_the_prompt_begins_goes_on():
    reader = ResponseReader("chatml", TOOLS, given='<tool_call>\n{"name": "f", "arguments": ')
    assert read(reader, ['{"x": 3}}\n', "</tool_call>"])[2] == [("f", {"x": 3})]


@given(
    st.text("ab.", max_size=30),
    st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_text_ends_before_the_stop_sequence_that_is_complete_first(text, stop, cuts):
    finder = StopFinder(stop)
    found = "".join(map(finder.push, pieces_of(text, cuts))) + finder.finish()
    # The oracle reads character by character.
    for end in range(len(text) + 1):
        ends = [s for s in stop if text[:end].endswith(s)]
        if ends:
            longest = max(ends, key=len)
            assert finder.found == longest and found == text[: end - len(longest)]
            return
    assert finder.found is None and found == text
