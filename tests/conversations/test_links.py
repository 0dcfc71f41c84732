"""Links: what followed an exchange, by the conversation it stands in or by its session."""

from dataclasses import replace

import pytest
from scripted_talk import call, exchanges, tool

from mmrl.conversations.links import failed, links


def kinds(*found) -> list[tuple[str, str, str]]:
    return [
        (earlier, link.kind, link.later.id)
        for earlier, following in links(list(found)).items()
        for link in following
    ]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("What is 12 * 34?", "retry"),
        ("what is  12 * 34", "retry"),
        ("Again: what is 12 * 34?", "retry"),
        ("What is 12 * 35?", "reply"),
        ("No, that is 408.", "correction"),
        ("That's wrong", "correction"),
        ("that’s not right. Think again", "correction"),
        ("You forgot a zero", "correction"),
        ("The correct answer is 408", "correction"),
        ("No thanks, that is all", "reply"),
        ("No problem!", "reply"),
        ("Now divide it by 2", "reply"),
        ("Thank you", "reply"),
    ],
)
def test_what_the_user_says_next_tells_a_retry_and_a_correction_from_another_turn(words, kind):
    talk = exchanges("s: Be brief.", "u: What is 12 * 34?", "a: 400", f"u: {words}", "a: 408")
    assert kinds(*talk) == [("e0", kind, "e1")]


def test_a_long_conversation_links_each_turn_once():
    talk = exchanges("u: hi", "a: hello", "u: sing", "a: la", "u: No!", "a: do", "u: ok", "a: .")
    assert kinds(*talk) == [
        ("e0", "reply", "e1"), ("e1", "correction", "e2"), ("e2", "reply", "e3"),
    ]  # fmt: skip


def test_what_clients_change_does_not_hide_a_continuation():
    [first, second] = exchanges("s: It is ten.", "u: hi", "a: hello", "u: No, sing", "a: la")
    thought = first.response | {"content": "<think>greet</think>hello ", "refusal": None}
    parts = [{"type": "text", "text": "hi"}]
    history = [{"role": "user", "content": parts}, *second.messages[2:]]
    changed = replace(second, messages=[{"role": "system", "content": "It is one."}, *history])
    assert kinds(replace(first, response=thought), changed) == [("e0", "correction", "e1")]


def test_other_people_with_the_same_words_are_kept_apart():
    [first, second] = exchanges("u: hi", "a: hello", "u: No!", "a: hey")
    assert kinds(replace(first, user="ada"), replace(second, user="bob")) == []
    assert kinds(replace(first, session="1"), replace(second, session="2")) == []
    assert len(kinds(replace(first, user="ada"), second)) == 1
    assert len(kinds(first, replace(second, user="ada", session="1"))) == 1
    other = replace(first, id="bob", user="bob", time=0.5)
    ada = replace(first, user="ada"), replace(second, user="ada")
    assert kinds(ada[0], other, ada[1]) == [("e0", "correction", "e1")]


def test_asking_the_same_again_is_a_retry_only_within_a_session():
    first = exchanges("u: What is the capital of France?", "a: Lyon")
    again = exchanges("u: what's the capital of France?", "a: Paris", name="f", time=1.0)
    other = exchanges("u: What is the capital of Spain?", "a: Rome", name="f", time=1.0)
    assert kinds(*first, *again) == []
    in_session = [replace(e, session="s") for e in first + again]
    assert kinds(*in_session) == [("e0", "retry", "f0")]
    assert kinds(*(replace(e, session="s") for e in first + other)) == []
    choices = [replace(e, session="s", time=0.1) for e in again]
    assert kinds(*in_session[:1], *choices) == []


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (tool("12 degrees"), False),
        (tool("12 degrees", is_error=True), True),
        (tool("Error: no city"), True),
        (tool("ValueError: no city"), True),
        (tool("Traceback (most recent call last):\n  x"), True),
        (tool('{"error": "no city"}'), True),
        (tool('{"error": null, "degrees": 12}'), False),
        (tool("Error handling is an art."), False),
        (tool("Errors: 0"), False),
    ],
)
def test_results_of_tools_are_errors_where_they_say_so(result, error):
    assert failed(result) == error
    talk = exchanges("u: Weather?", call({"city": "Rome"}), result, "a: Fine.")
    assert kinds(*talk) == [("e0", "tool_error" if error else "tool", "e1")]
