"""References: what a failed response is compared with, and that it is not made up."""

import json

import pytest
from scripted_talk import WEATHER, call, exchanges, tool

from mmrl.conversations.links import links
from mmrl.conversations.read import Feedback
from mmrl.conversations.references import Reference, possible_answers, reference
from mmrl.data import Sample, Status
from mmrl.rewards.harvested import COMPARE, GRADE, MATHS, STATED, TOOL_CALLS, score
from mmrl.text.tool_calls import ToolCall

LONG = "Paris lies on the Seine and has been the capital for most of a thousand years."


def of_first(talk, **feedback) -> Reference | None:
    return reference(talk[0], links(talk), feedback)


@pytest.mark.parametrize(
    ("words", "label", "verifier"),
    [
        ("No, the right answer is 408.", "408", MATHS),
        ("Wrong. The answer is: $408, not 400", "$408", MATHS),
        ("No, it's 408", "408", MATHS),
        ("No! 1,408.5, because of the carry", "1,408.5", MATHS),
        (r"No, the answer is \frac{1}{2}.", r"\frac{1}{2}", MATHS),
        ("That is wrong, the correct answer is Paris.", "Paris", STATED),
        ("No, it should be 'New York', since it moved", "New York", STATED),
        ("Wrong, the expected output is `a b c`", "a b c", STATED),
    ],
)
def test_a_stated_answer_is_the_label(words, label, verifier):
    talk = exchanges("u: Well?", "a: 400", f"u: {words}", "a: Sorry.")
    assert of_first(talk) == Reference(label, verifier)
    comment = Feedback("down", comments=(words,))
    assert of_first(exchanges("u: Well?", "a: 400"), e0=comment) == Reference(label, verifier)


@pytest.mark.parametrize(
    "words",
    [
        "No, it should be shorter",
        "No, it's too long",
        "I said the answer is not in the text",
        "That is wrong",
        "No. The answer is " + "word " * 20,
    ],
)
def test_a_wish_or_a_doubt_is_no_answer(words):
    talk = exchanges("u: Well?", "a: 400", f"u: {words}", "a: Sorry.")
    assert of_first(talk) == Reference("400", COMPARE)


@pytest.mark.parametrize(("answer", "verifier"), [("Paris", STATED), (LONG, GRADE), ("42", MATHS)])
def test_a_later_try_that_was_rated_up_is_the_reference(answer, verifier):
    talk = exchanges(
        "u: Capital of France?", "a: Lyon", "u: No!", "a: Nice", "u: Wrong", f"a: {answer}",
        "u: And of Spain?", "a: Rome",
    )  # fmt: skip
    up = {"e2": Feedback("up")}
    assert of_first(talk, **up) == Reference(answer, verifier)
    # What answers another question is no reference, nor is a try that nobody praised.
    assert of_first(talk, e3=Feedback("up")) == Reference("Lyon", COMPARE)
    assert of_first(talk) == Reference("Lyon", COMPARE)


def test_calls_that_worked_after_an_error_are_the_label():
    wrong, right = call({"town": "Rome"}), call({"city": "Rome", "days": 2})
    talk = exchanges(
        "u: Weather?", wrong, tool("Error: no city"), right, tool("12"), "a: 12.", tools=[WEATHER]
    )
    label = [{"weather": {"city": ["Rome"], "days": [2]}}]
    assert of_first(talk) == Reference(label, TOOL_CALLS)
    assert reference(talk[1], links(talk), {}) is None
    # An error again, or another function: only that some call can be read is left to ask for.
    for response, result in ((right, "Error: down"), (call({"x": 1}, "other"), "12")):
        talk = exchanges(
            "u: Weather?", wrong, tool("Error: no city"), response, tool(result), "a: Hm.",
            tools=[WEATHER],
        )  # fmt: skip
        assert of_first(talk) == Reference("any", TOOL_CALLS)


def test_the_call_that_a_user_writes_is_the_label():
    said = 'No: {"name": "weather", "arguments": {"city": "Rome"}}'
    talk = exchanges("u: Weather?", "a: Fine", f"u: {said}", "a: Oh", tools=[WEATHER])
    assert of_first(talk) == Reference([{"weather": {"city": ["Rome"]}}], TOOL_CALLS)
    # A call that does not fit the tools is none.
    wrong = said.replace("city", "town")
    talk = exchanges("u: Weather?", "a: Fine", f"u: {wrong}", "a: Oh", tools=[WEATHER])
    assert of_first(talk) == Reference("Fine", COMPARE)


def test_nothing_said_is_nothing_to_compare_with():
    assert of_first(exchanges("u: Well?", "a: "), e0=Feedback("down")) is None


NESTED = {
    "name": "order",
    "parameters": {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": {"type": "object"}},
            "to": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "gift": {"type": "boolean"},
        },
        "required": ["items"],
    },
}


def test_every_label_accepts_the_call_it_was_made_of_and_no_other():
    arguments = {
        "items": [{"name": "tea", "n": 2}], "to": {"street": "Elm"}, "tags": ["a"], "gift": True,
    }  # fmt: skip
    label = possible_answers([ToolCall("order", arguments)], [NESTED])
    assert label is not None

    def reward(changed) -> float:
        text = json.dumps({"name": "order", "arguments": arguments | changed})
        metadata = {"verifier": TOOL_CALLS, "tools": [NESTED]}
        response = f"<tool_call>{text}</tool_call>"
        sample = Sample(response=response, label=label, metadata=metadata, status=Status.COMPLETED)
        return score(sample)["reward"]

    assert reward({}) == 1
    others = [{"items": [{"name": "tea", "n": 3}]}, {"to": {"street": "Oak"}}, {"tags": []}]
    assert [reward(changed) for changed in [*others, {"gift": False}]] == [0, 0, 0, 0]
