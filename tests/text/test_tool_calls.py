"""Calls that templates write are read back, and no text whatever makes a parser raise."""

import json
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmrl.errors import UserError
from mmrl.text import ToolCall, builtin_template, parse_response

FAMILIES = ["chatml", "llama3", "m1", "m2"]
# Where an assistant's turn begins and ends in what the templates render.
TURNS = {
    "chatml": ("<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": ("assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "m1": ("<beginning_of_sentence>ai name=assistant\n", "<end_of_sentence>"),
    "m2": ("]~b]ai\n", "[e~["),
}
PARTS = ["<think>", "</think>", "<tool_calls>", "</tool_calls>", "<tool_call>", "</tool_call>"]
PARTS += ["<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="f">', "</invoke>"]
PARTS += ['<parameter name="k">', "</parameter>", "<|python_tag|>", '{"name": "f", "arguments": {']
PARTS += ["{name: f, arguments: {", '"parameters": {"x": ', "}", "\n", ";", "null", "1e999", "NaN"]

WORDS = st.text(alphabet=string.ascii_letters + "äß漢🙂 _.,;:(){}'\"\\/", min_size=1, max_size=20)
TEXTS = WORDS.filter(lambda text: text.strip() == text and text.lower() != "null")
NAMES = st.text(alphabet=string.ascii_letters + "_", min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=3)


def json_type(value):
    if isinstance(value, bool):
        return "boolean"
    kinds = {int: "integer", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "string")


def schemas(calls):
    """Tools whose schemas have the types of the calls' arguments."""
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {key: {"type": json_type(v)} for key, v in arguments.items()},
                },
            },
        }
        for name, arguments in calls
    ]


def written(family, content, reasoning, calls):
    """The text of an assistant's turn as the family's template writes it."""
    functions = [{"function": {"name": name, "arguments": args}} for name, args in calls]
    reasoned = {"reasoning_content": reasoning} if reasoning and family in ("m1", "m2") else {}
    if reasoning and not reasoned:
        content = f"<think>\n{reasoning}\n</think>\n\n{content}"
    message = {"role": "assistant", "content": content} | reasoned
    message |= {"tool_calls": functions} if calls else {}
    chat = [{"role": "user", "content": "."}, message]
    text = builtin_template(family).render(chat, add_generation_prompt=False)
    start, end = TURNS[family]
    return text.rpartition(start)[2].rpartition(end)[0]


@settings(deadline=None)
@given(content=st.just("") | TEXTS, reasoning=st.none() | TEXTS, calls=CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_template_writes_is_read_back(family, content, reasoning, calls):
    if family == "llama3":  # one call, and nothing beside it
        calls = calls[:1]
        content, reasoning = ("", None) if calls else (content, reasoning)
        if content.startswith(("{", ";", ",")):
            content = f"A {content}"
    calls = list(dict(calls).items())
    text = written(family, content, reasoning, calls)
    found = parse_response(text, family, schemas(calls), thinking=bool(reasoning))
    assert found.calls == tuple(ToolCall(*call) for call in calls)
    assert (found.content, found.reasoning, found.errors) == (content, reasoning, ())


def test_m1_reads_both_spellings_of_a_line():
    text = (
        "<think>\nI could write <tool_calls> now\n</think>\nSure.\n<tool_calls>\n"
        '{"name": "f", "arguments": {"x": {"y": 1}}}\n\n'
        '{name: g, arguments: {"x": "}, arguments: {"}}\n'
        "{name: <h>, arguments: {}}\n</tool_calls>"
    )
    found = parse_response(text, "m1")
    assert found.calls == (("f", {"x": {"y": 1}}), ("g", {"x": "}, arguments: {"}), ("h", {}))
    assert (found.content, found.errors) == ("Sure.", ())
    assert found.reasoning == "I could write <tool_calls> now"


def test_m1_skips_bad_lines_and_later_blocks():
    good = '{"name": "f", "arguments": {}}'
    block = f"<tool_calls>\noops\n{good}\n{{name: f}}\n[1]\n</tool_calls>"
    found = parse_response(f"{block}<tool_calls>{good}</tool_calls>", "m1")
    assert found.calls == (("f", {}),)
    assert len(found.errors) == 3 and "'oops' is not JSON" in found.errors[0]
    assert "'[1]' is not {\"name\"" in found.errors[2]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", " two words ", "two words"),
        ("string", "NULL", None),
        ("string", "7", "7"),
        (None, "7", "7"),
        ("integer", "7", 7),
        ("integer", "7.5", "7.5"),
        ("number", "7.5", 7.5),
        ("number", "7.0", 7),
        ("number", "inf", "inf"),
        ("boolean", "True", True),
        ("boolean", "1", True),
        ("boolean", "no", False),
        ("object", '{"a": [1]}', {"a": [1]}),
        ("array", "[1, 2", "[1, 2"),
        ("array", "[NaN]", "[NaN]"),
        (["null", "integer"], "7", 7),
        ("integer", "9" * 5000, "9" * 5000),
    ],
)
def test_m2_types_values_by_the_schema(kind, text, value):
    schema = {"x": {} if kind is None else {"type": kind}}
    tool = {"name": "f", "parameters": {"type": "object", "properties": schema}}
    call = f'<invoke name="f">\n<parameter name="x">{text}</parameter>\n</invoke>'
    for tools in ([tool], [{"type": "function", "function": tool}]):
        found = parse_response(f"<minimax:tool_call>\n{call}\n</minimax:tool_call>", "m2", tools)
        assert found.calls == (("f", {"x": value}),) and not found.errors
        assert type(found.calls[0].arguments["x"]) is type(value)


def guide(text):
    """Calls by the expressions of MiniMax-M2's tool calling guide, values as text."""
    calls = []
    for block in re.findall(r"<minimax:tool_call>(.*?)</minimax:tool_call>", text, re.DOTALL):
        for invocation in re.findall(r"<invoke name=(.*?)</invoke>", block, re.DOTALL):
            name = re.search(r"^([^>]+)", invocation).group(1)
            arguments = {}
            for parameter in re.findall(
                r"<parameter name=(.*?)</parameter>", invocation, re.DOTALL
            ):
                key, value = re.search(r"^([^>]+)>(.*)", parameter, re.DOTALL).groups()
                value = value.strip()
                arguments[key.strip("\"' ")] = None if value.lower() == "null" else value
            calls.append((name.strip("\"' "), arguments))
    return calls


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(NAMES, st.lists(st.tuples(NAMES, st.text(alphabet="a <>/=\n\"'&null")))),
        max_size=3,
    )
)
def test_m2_reads_the_calls_that_the_published_expressions_read(calls):
    text = "".join(
        f'<minimax:tool_call>\n<invoke name="{name}">\n'
        + "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments)
        + "</invoke>\n</minimax:tool_call>\n"
        for name, arguments in calls
    )
    assert list(parse_response(text, "m2").calls) == guide(text)


def test_m2_starts_in_reasoning_since_its_prompt_opens_it():
    assert parse_response("plan\n</think>\n\nHi", "m2").reasoning == "plan"
    cut = parse_response("plan <minimax:tool_call>", "m2")
    assert (cut.reasoning, cut.content) == ("plan ", "") and len(cut.errors) == 1
    assert parse_response("Hi", "m2").reasoning == "Hi"
    assert parse_response("Hi", "m2", thinking=False).content == "Hi"


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\na\n</think>\n\nb", "a", "b"),
        ("a</think>b", "a", "b"),
        ("<think>a", "a", ""),
        ("<think>\n\n</think>\n\nb", None, "b"),
        ("b <think>", None, "b <think>"),
        ('<tool_call>{"name": "f", "arguments": {"x": "</think>"}}</tool_call>', None, ""),
    ],
)
def test_reasoning_is_what_stands_in_think(text, reasoning, content):
    found = parse_response(text, "chatml")
    assert (found.reasoning, found.content, found.errors) == (reasoning, content, ())


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', [("f", {"x": 1})], ""),
        ('<|python_tag|>{"name": "f", "arguments": {}}', [("f", {})], ""),
        ('Sure.<|python_tag|>{"name": "f", "parameters": {}}', [("f", {})], "Sure."),
        (
            '{"type": "function", "name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
            [("f", {}), ("g", {})],
            "",
        ),
        ('{"name": "f", "parameters": {}}\nDone.', [("f", {})], "Done."),
        ('{"name": "Ann", "age": 3}', [], '{"name": "Ann", "age": 3}'),
        ("{not JSON}", [], "{not JSON}"),
        ("A brace } and {", [], "A brace } and {"),
        ("7", [], "7"),
        ("", [], ""),
    ],
)
def test_llama3_calls_are_objects_with_a_name_and_parameters(text, calls, content):
    found = parse_response(text, "llama3")
    assert (list(found.calls), found.content, found.errors) == (calls, content, ())


@pytest.mark.parametrize(
    ("family", "text", "error"),
    [
        ("chatml", '<tool_call>{"name": "f"', "</tool_call> is missing"),
        ("chatml", "<tool_call>f(1)</tool_call>", "'f\\(1\\)' is not JSON"),
        ("chatml", '<tool_call>{"name": 1, "arguments": {}}</tool_call>', "is not {.name.: tool"),
        ("chatml", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "is not {.name.: too"),
        ("chatml", f"<tool_call>{'[' * 9999}</tool_call>", "nests too deep"),
        ("llama3", '{"name": "f", "parameters": {', "is not JSON"),
        ("llama3", "<|python_tag|>print(1)", "'print\\(1\\)' is not JSON"),
        ("llama3", "<|python_tag|>null", "'null' is not"),
        ("m1", "<tool_calls>\n{}", "</tool_calls> is missing"),
        ("m2", "</think><minimax:tool_call>", "</minimax:tool_call> is missing"),
        ("m2", "</think><minimax:tool_call>f</minimax:tool_call>", "'f' holds no <invoke"),
        ("m2", '<minimax:tool_call><invoke name="f"></minimax:tool_call>', "</invoke> is missing"),
        (
            "m2",
            '<minimax:tool_call><invoke name="f"><parameter name=x></invoke></minimax:tool_call>',
            "</parameter> is missing",
        ),
        ("m2", "<minimax:tool_call><invoke name=></invoke></minimax:tool_call>", "names no tool"),
    ],
)
def test_a_bad_call_is_an_error_that_says_what_is_wrong(family, text, error):
    found = parse_response(text, family)
    assert found.calls == () and len(found.errors) == 1
    assert re.search(error, found.errors[0])
    assert len(found.errors[0]) < 300


@settings(deadline=None, max_examples=300)
@given(text=st.text() | st.lists(st.sampled_from(PARTS) | st.text(max_size=3)).map("".join))
@example('<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>')
@example('{"name": "f", "parameters": {"x": 1e999}}')
@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_makes_a_parser_raise_and_calls_are_well_formed(family, text):
    found = parse_response(text, family, schemas([("f", {"k": [], "x": 1.0})]))
    for call in found.calls:
        assert isinstance(call.name, str) and call.name
        assert isinstance(call.arguments, dict)
        json.dumps(call.arguments, allow_nan=False)
    assert all(isinstance(error, str) and error for error in found.errors)


@settings(deadline=None)
@given(data=st.data(), calls=CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_and_changed_calls_do_not_raise_either(family, data, calls):
    text = written(family, "A", "B", calls[:1] if family == "llama3" else calls)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    inserted = data.draw(st.sampled_from([*PARTS, ""]))
    for changed in (text[:start], text[start:], text[:start] + inserted + text[stop:]):
        found = parse_response(changed, family, schemas(calls))
        assert all(name and isinstance(arguments, dict) for name, arguments in found.calls)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", [*PARTS, "[", "{", '"', "\\", " ", "<", "{name:", ",", "a: ", "9"])
def test_long_repetitions_of_any_part_finish(family, part):
    opening = {"chatml": "<tool_call>", "m1": "<tool_calls>", "m2": "<minimax:tool_call>"}
    for before in ("", opening.get(family, "<|python_tag|>")):
        found = parse_response(before + part * (100_000 // len(part)), family)
        assert sum(map(len, found.errors)) < 10**7


def test_an_unknown_family_is_named_with_the_nearest():
    with pytest.raises(UserError, match="no tool call format 'chatm'. Did you mean chatml"):
        parse_response("", "chatm")
