"""The harvest: each kind of failure is found, becomes one row, and says what it was."""

import json
from dataclasses import replace

import pytest
from scripted_talk import WEATHER, call, exchanges, tool

from mmrl.conversations.harvest import REASONS, harvest
from mmrl.conversations.read import Conversations, Feedback
from mmrl.rewards.harvested import COMPARE, MATHS, STATED, TOOL_CALLS

NO = "u: No, the answer is 408."


def rows(talk, judge=True, **feedback):
    return harvest(Conversations(list(talk), feedback), judge=judge).rows


def reasons(talk, **feedback) -> dict[str, list[str]]:
    return {
        name: row["metadata"]["reasons"]
        for row in rows(talk, **feedback)
        for name in row["metadata"]["exchanges"]
    }


def test_every_kind_of_failure_is_found_and_success_is_not():
    plain = exchanges("u: Well?", "a: 400")
    found = [
        reasons(plain, e0=Feedback("down")),
        reasons(plain, e0=Feedback(reward=0.4)),
        reasons(exchanges("u: What is it?", "a: 1", "u: what is it", "a: 2")),
        reasons(exchanges("u: Well?", "a: 400", NO, "a: Ah.")),
        reasons(exchanges("u: W?", call({}), tool("Error: x"), "a: Hm.", tools=[WEATHER])),
        reasons(exchanges("u: Well?", "a: 4", finish_reason="length")),
    ]
    assert found == [{"e0": [reason]} for reason in REASONS]
    assert reasons(plain) == reasons(plain, e0=Feedback(reward=0.5)) == {}
    assert reasons(exchanges("u: Well?", "a: 400", "u: Thanks", "a: Bye.")) == {}
    # Who rated it up knows better than how it looks.
    cut = exchanges("u: Well?", "a: 4", finish_reason="length")
    assert reasons(cut, e0=Feedback("up", reward=0.0)) == {}
    assert reasons(cut, e0=Feedback("down")) == {"e0": ["thumbs_down", "truncated"]}


def test_a_row_has_the_prompt_before_the_failure_and_what_its_verifier_needs():
    talk = exchanges(
        "s: Be brief.", "u: Weather?", call({"town": "Rome"}), tool("Error: no city"),
        call({"city": "Rome"}), tool("12"), "a: 12.", tools=[WEATHER],
    )  # fmt: skip
    [row] = rows(talk, judge=False)
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"},
    ]  # fmt: skip
    assert row["label"] == [{"weather": {"city": ["Rome"]}}]
    assert row["tools"] == [WEATHER]
    assert row["metadata"] == {
        "verifier": TOOL_CALLS, "reasons": ["tool_error"], "exchanges": ["e0"],
        "tools": [WEATHER], "tool_format": "chatml",
    }  # fmt: skip
    assert json.loads(json.dumps(row)) == row


def test_what_only_a_judge_can_grade_is_counted_and_left_out_unless_asked_for():
    talk = exchanges("u: Well?", "a: 400", NO, "a: Ah.", "u: Sing", "a: la")
    conversations = Conversations(talk, {"e2": Feedback("down")})
    without, asked = harvest(conversations), harvest(conversations, judge=True)
    assert (without.failures, without.for_judge, without.verifiers) == (2, 1, {MATHS: 1})
    assert (asked.failures, asked.for_judge, asked.verifiers) == (2, 0, {MATHS: 1, COMPARE: 1})


def test_secrets_of_an_old_journal_go_and_never_become_a_label():
    talk = exchanges("u: Mail ada@example.org", "a: hi", "u: No, the answer is Bo.", "a: Ah")
    [row] = rows(talk)
    assert row["prompt"][0]["content"] == "Mail [REDACTED:email]" and row["label"] == "Bo"
    talk = exchanges("u: Mail?", "a: hi", "u: No, the answer is ada@example.org", "a: Ah")
    found = harvest(Conversations(talk), judge=True)
    assert found.rows == [] and found.unverifiable == 1


def many(*questions: str, answer: str = "408", start: int = 0):
    """Corrected questions, in order of time."""
    return [
        replace(e, time=start + i + e.time / 10)
        for i, question in enumerate(questions)
        for e in exchanges(
            f"u: {question}", "a: 400", f"u: No, the answer is {answer}.", "a: Ah.",
            name=f"q{start + i}.",
        )
    ]  # fmt: skip


def test_the_same_prompt_is_one_row_with_the_newest_answer_and_all_reasons():
    talk = many("What is it?", "What is it?", answer="407") + many("What is it?", start=5)
    found = harvest(Conversations(talk, {"q1.0": Feedback("down")}))
    [row] = found.rows
    assert row["label"] == "408"
    assert row["metadata"]["exchanges"] == ["q0.0", "q1.0", "q5.0"]
    assert set(row["metadata"]["reasons"]) == {"correction", "thumbs_down"}
    assert (found.duplicates.same, found.duplicates.near) == (2, 0)


def test_the_surest_verifier_wins_over_the_newest():
    talk = many("What is it?") + many("What is it?", answer="four hundred", start=5)
    [row] = rows(talk)
    assert (row["label"], row["metadata"]["verifier"]) == ("408", MATHS)
    assert STATED != MATHS


LONG = "Please tell me how many apples are in the large basket by the door, if there are 12 of"


@pytest.mark.parametrize(
    ("other", "answer", "merged"),
    [
        (f"{LONG} them today!", "408", 1),
        (f"{LONG} them  now?", "409", 0),  # another answer
        (f"{LONG.replace('12', '13')} them now?", "408", 0),  # another number
        ("How do I get to the station from here?", "408", 0),
    ],
)
def test_nearly_the_same_prompt_is_one_row_only_with_the_same_answer(other, answer, merged):
    talk = many(f"{LONG} them now?") + many(other, answer=answer, start=5)
    found = harvest(Conversations(talk), likeness=0.8)
    assert found.duplicates.near == merged
    assert len(found.rows) == 2 - merged


def test_turns_of_one_long_conversation_are_not_duplicates():
    history = "u: " + "Once upon a time there was a king. " * 30
    talk = exchanges(
        history, "a: And then?", "u: Who is she?", "a: Bo", "u: No, the answer is Al.", "a: Al",
        "u: Where is the old castle?", "a: Bo", "u: No, the answer is Al.", "a: Al",
    )  # fmt: skip
    assert len(rows(talk, judge=False)) == 2
