"""Reading journals: what was written comes back, and a bad line is told and skipped."""

import json
from dataclasses import asdict

import pytest
from scripted_talk import WEATHER, call, exchanges, tool

from mmrl.conversations import Journal
from mmrl.conversations.read import read_journals
from mmrl.errors import UserError

TALK = exchanges(
    "u: Weather?", call({"city": "Rome"}), tool("12"), "a: 12 degrees", tools=[WEATHER]
)


def test_what_was_recorded_comes_back_in_order_of_time(tmp_path):
    journal = Journal(tmp_path)
    for exchange in reversed(TALK):
        journal.record(exchange)
    journal.feedback("e1", "down", comment="too short")
    journal.feedback("e1", None, reward=0.25)
    journal.feedback("e1", "up", comment="fine after all")
    found = read_journals([tmp_path])
    assert found.exchanges == TALK and not found.problems
    [said] = found.feedback.values()
    assert (said.rating, said.reward) == ("up", 0.25)
    assert said.comments == ("too short", "fine after all")


BAD = {
    "{": "not JSON",
    "[" * 100_000: "nested too deeply",
    "3": "neither an exchange nor feedback",
    '{"kind": "other"}': "neither an exchange nor feedback",
    '{"kind": "exchange", "id": "x"}': "the exchange has no time, api, mode, messages",
    '{"kind": "feedback", "exchange": "e0", "time": 1, "rating": "meh"}': "'meh' is none of up",
    '{"kind": "feedback", "time": 1}': "names no exchange",
    '{"kind": "feedback", "exchange": "gone", "time": 1}': "an exchange that is not here, 'gone'",
    "changed": "messages of the exchange is 'hi'",
    "empty": "has no role",
    "calls": "calls that are none",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_told_with_its_place_and_the_others_are_read(line, tmp_path):
    good = json.dumps({"kind": "exchange"} | asdict(TALK[0]))
    changes = {
        "changed": {"messages": "hi"},
        "empty": {"messages": [{}]},
        "calls": {"response": {"role": "assistant", "tool_calls": ["f"]}},
    }
    text = line
    if line in changes:
        text = json.dumps({"kind": "exchange"} | asdict(TALK[1]) | changes[line])
    file = tmp_path / "2026-01-01.jsonl"
    file.write_bytes(f"\n{text}\n{good}\n".encode() + b'{"kind": "exch\xff')
    found = read_journals([file])
    assert found.exchanges == TALK[:1]
    problems = sorted(found.problems)
    assert problems[0].startswith(f"{file}:2: ") and BAD[line] in problems[0]
    assert problems[1] == f"{file}:4: not JSON"


def test_what_is_no_journal_is_the_users_mistake(tmp_path):
    (tmp_path / "journal").mkdir()
    with pytest.raises(UserError, match=r"no journal .*journla. Did you mean .*journal\?"):
        read_journals([tmp_path / "journla"])
    with pytest.raises(UserError, match="has no .jsonl file yet"):
        read_journals([tmp_path / "journal"])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="the directory of a run"):
        read_journals([tmp_path])
