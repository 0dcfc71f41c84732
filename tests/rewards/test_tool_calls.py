"""Tool calls compared with possible answers: as BFCL's own checker does, and as a reward."""

import copy
import json
import random
import sys
import types

import pytest

from mmrl.data import Sample
from mmrl.data.bfcl import CATEGORIES, bfcl_examples
from mmrl.rewards.tool_calls import graded, right_calls, right_value, score
from mmrl.text.tool_calls import ToolCall

CALLS = [category for category in CATEGORIES if "relevance" not in category]
TRIALS = 12


@pytest.fixture(scope="module")
def checker():
    """BFCL's `ast_checker` without its table of models, which imports every provider's client."""
    name = "bfcl_eval.constants.model_config"
    model = types.SimpleNamespace(underscore_to_dot=False)
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].MODEL_CONFIG_MAPPING = {"any": model}
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    finally:
        del sys.modules[name]

    def check(tools, calls, answers, category):
        calls = [{call.name: copy.deepcopy(call.arguments)} for call in calls]
        functions = [tool["function"] for tool in tools]
        return ast_checker(functions, calls, answers, Language.PYTHON, category, "any")["valid"]

    return check


def bfcl_types(schema):
    """JSON schema's names back in BFCL's, for its checker."""
    back = {"object": "dict", "number": "float"}
    found = {"type": "any"} | schema
    found["type"] = back.get(found["type"], found["type"])
    if "properties" in schema:
        found["properties"] = {k: bfcl_types(v) for k, v in schema["properties"].items()}
    if "items" in schema:
        found["items"] = bfcl_types(schema["items"])
    return found


def both_splits(category):
    return [
        example
        for held_out in (False, True)
        for example in bfcl_examples({category: {}}, held_out=held_out, held_out_every=2)
    ]


def drawn(answer, rng):
    """A call that is right: a value of each argument, optional ones now and then left out."""
    [(name, possible)] = answer.items()

    def value(right):
        if isinstance(right, dict):
            return arguments(right)
        return (
            [value(item) if isinstance(item, dict) else item for item in right]
            if isinstance(right, list)
            else right
        )

    def arguments(possible):
        chosen = {}
        for key, values in possible.items():
            given = [v for v in values if v != ""] if isinstance(values, list) else [values]
            if given and not ("" in values and rng.random() < 0.3):
                chosen[key] = rng.choice(given)
        return chosen

    return ToolCall(name, {key: value(one) for key, one in arguments(possible).items()})


def changed(value, rng):
    others = [str(value), [value], None, 0, 1.5, True, "", [], {}, {"a": 1}]
    if type(value) is int:
        others += [value + 1, float(value), -value] * 3
    elif type(value) is float:
        others += [value * 2, int(value)] * 3
    elif type(value) is bool:
        others += [not value, int(value)] * 3
    elif type(value) is str:
        others += [value.upper(), value.replace(" ", ""), value + "x", value + ".", value[1:]] * 3
    elif type(value) is list:
        others += [value[::-1], value[:-1], value + value[:1], [changed(v, rng) for v in value]] * 3
    elif type(value) is dict:
        one = dict(value)
        if one:
            key = rng.choice(list(one))
            one[key] = changed(one[key], rng)
        others += [one, dict(list(value.items())[1:]), {**value, "other": 1}] * 3
    return rng.choice(others)


def corrupted(calls, rng):
    """One to two changes of the calls, some of which leave them right."""
    calls = copy.deepcopy(calls)
    for _ in range(rng.choice([1, 1, 2])):
        if not calls:
            break
        index, kind = rng.randrange(len(calls)), rng.random()
        name, arguments = calls[index]
        if kind < 0.05:
            calls.pop(index)
        elif kind < 0.1:
            calls.append(copy.deepcopy(calls[index]))
        elif kind < 0.15:
            rng.shuffle(calls)
        elif kind < 0.2:
            calls[index] = ToolCall(name + "x", arguments)
        elif kind < 0.3:
            arguments["extra"] = 1
        elif kind < 0.45 and arguments:
            arguments.pop(rng.choice(list(arguments)))
        elif arguments:
            key = rng.choice(list(arguments))
            arguments[key] = changed(arguments[key], rng)
    return calls


@pytest.mark.parametrize("category", CALLS)
def test_bfcls_own_checker_agrees_on_right_and_on_corrupted_calls(category, checker):
    """It gives each answer the first call that fits; pairs that it misses so are few."""
    rng = random.Random(category)
    verdicts, greedy = [], 0
    for example in both_splits(category):
        functions = copy.deepcopy(example.tools)
        for tool in functions:
            tool["function"]["parameters"] = bfcl_types(tool["function"]["parameters"])
        for trial in range(TRIALS):
            calls = [drawn(answer, rng) for answer in example.label]
            if trial >= 2:
                calls = corrupted(calls, rng)
            theirs = checker(functions, calls, example.label, category)
            ours = right_calls(calls, example.label, example.tools)
            if ours and not theirs and len(calls) > 1:
                greedy += 1
            else:
                assert ours == theirs, (example.metadata["id"], calls)
            verdicts.append((trial < 2, theirs))
    wrong = [not right for _, right in verdicts]
    assert 0.2 * len(verdicts) < sum(wrong) < 0.8 * len(verdicts)
    untouched = [right for drawn_right, right in verdicts if drawn_right]
    assert sum(untouched) > 0.95 * len(untouched)
    assert greedy <= 0.01 * len(verdicts)


def sample(response, label, **metadata):
    return Sample(response=response, label=label, metadata={"tools": TOOLS} | metadata)


def tool(name, required, **properties):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("play", ["artist"], artist={"type": "string"}, minutes={"type": "integer"}),
    tool("stop", []),
]
PLAY = [{"play": {"artist": ["Abba"], "minutes": [20, ""]}}]
BOTH = [*PLAY, {"play": {"artist": ["Abba", "ABBA Gold", "Queen"], "minutes": [20, 30]}}]


def call(name="play", **arguments):
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>\n"


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        (call(artist="abba"), PLAY, (1, 1, 1)),
        ("I will play it. " + call(artist="Abba", minutes=20), PLAY, (1, 1, 1)),
        (call(artist="Abba", minutes="20"), PLAY, (0, 1, 1)),
        (call(artist="Abba", minutes=20.0), PLAY, (0, 1, 1)),
        (call(minutes=20), PLAY, (0, 1, 1)),
        (call(artist="Abba", loud=True), PLAY, (0, 1, 1)),
        (call("stop"), PLAY, (0, 0, 1)),
        (call(artist="Abba") * 2, PLAY, (0, 0, 1)),
        (call(artist="Abba") + "<tool_call>\n{play}\n</tool_call>", PLAY, (0, 1, 0)),
        ("<tool_call>\n" + '{"name": "play"', PLAY, (0, 0, 0)),
        ("play(artist='Abba')", PLAY, (0, 0, 1)),
        ("", PLAY, (0, 0, 1)),
        (call(artist="Abba", minutes=20) + call(artist="Queen", minutes=30), BOTH, (1, 1, 1)),
        (call(artist="Queen", minutes=30) + call(artist="Abba"), BOTH, (1, 1, 1)),
        (call(artist="Abba", minutes=20) + call(artist="Abba"), BOTH, (1, 1, 1)),
        (call(artist="Abba") + call(artist="Abba", minutes=20), BOTH, (1, 1, 1)),
        (call(artist="Abba") * 2, BOTH, (0, 1, 1)),
        (call(artist="Abba"), BOTH, (0, 0, 1)),
        ("No tool does that.", [], (1, 1, 1)),
        (call("stop"), [], (0, 0, 1)),
        ("<tool_call>{</tool_call>", [], (0, 1, 0)),
        (call("stop"), "any", (1, 1, 1)),
        ("Hello", "any", (0, 0, 1)),
    ],
)
def test_the_reward_is_one_where_the_calls_are_right_in_any_order(response, label, expected):
    solved, functions, form = expected
    called = form and "<tool_call>" in response
    whole = {"reward": solved, "solved": solved, "functions": functions, "format": form}
    assert score(sample(response, label)) == whole | {"called": called}


@pytest.mark.parametrize(
    ("response", "label", "value"),
    [
        (call(artist="Abba"), PLAY, 1),
        (call(artist="Queen"), PLAY, 0.5),
        (call(artist="Abba") + call("stop"), PLAY, 0.25),
        (call("stop"), PLAY, 0.25),
        (call(artist="Queen") + "<tool_call>{</tool_call>", PLAY, 0),
        ("play(artist='Abba')", PLAY, 0),
        (call("stop"), [], 0),
        ("No tool does that.", [], 1),
        ("Hello", "any", 0),
    ],
)
def test_partial_credit_rises_with_what_is_right(response, label, value):
    result = graded(sample(response, label))
    assert result["reward"] == value
    assert {**result, "reward": result["solved"]} == score(sample(response, label))


def test_other_formats_of_calls_are_read_as_the_metadata_say():
    response = '{"name": "play", "parameters": {"artist": "Abba"}}'
    assert score(sample(response, PLAY, tool_format="llama3"))["solved"] == 1
    assert score(sample(response, PLAY))["solved"] == 0


@pytest.mark.parametrize(
    ("value", "possible", "schema", "right"),
    [
        (3, [3.0], {"type": "number"}, True),
        (3.0, [3], {"type": "integer"}, False),
        (True, [1], {"type": "integer"}, False),
        (1, [True], {"type": "boolean"}, False),
        ("x", ["x"], {"type": ["null", "string"]}, True),
        ("April 1, 2024", ["april 1 2024"], {"type": "string"}, True),
        ("it's", ['it"s'], {"type": "string"}, True),
        (["A b", "c"], [["ab", "C"]], {"type": "array", "items": {"type": "string"}}, True),
        (["c", "ab"], [["ab", "c"]], {"type": "array", "items": {"type": "string"}}, False),
        ({"a": "X"}, [{"a": ["x"], "b": ["", 1]}], {"type": "object"}, True),
        ({"b": 1}, [{"a": ["x"], "b": ["", 1]}], {"type": "object"}, False),
        ([{"a": 1}], [[{"a": [1, 2]}]], {"type": "array", "items": {"type": "object"}}, True),
        ("dataset", ["dataset"], {"type": "array", "items": {"type": "integer"}}, True),
        ("Dataset", ["dataset"], {"type": "array", "items": {"type": "integer"}}, False),
        (7, [7], {}, True),
    ],
)
def test_values_are_compared_with_their_types(value, possible, schema, right):
    assert right_value(value, possible, schema) is right


@pytest.mark.parametrize("label", [None, "play", [{}], [PLAY], 3])
def test_a_label_of_another_form_is_an_error(label):
    with pytest.raises(ValueError, match="the label must be"):
        score(sample(call("stop"), label))


def test_a_label_that_calls_no_tool_of_the_prompt_is_an_error():
    with pytest.raises(ValueError, match="'sing'"):
        score(sample(call("sing"), [{"sing": {}}]))
    with pytest.raises(ValueError, match="tools"):
        score(Sample(response=call("stop"), label=[]))
