"""The binary: what it writes is what `mmrl.data` reads, and a mistake is one line."""

import json
from pathlib import Path

import pytest
from scripted_talk import WEATHER, call, exchanges, tool
from tiny_run import run_module

from mmrl.conversations import Journal
from mmrl.conversations.harvest import harvest
from mmrl.conversations.read import read_journals
from mmrl.data import Example
from mmrl.data.files import read_examples
from mmrl.errors import UserError
from mmrl.harvest import check, summary, write_rows
from mmrl.rewards.harvested import MATHS, TOOL_CALLS


@pytest.fixture
def journal(tmp_path) -> Path:
    """Two failures and a line that is none."""
    journal = Journal(tmp_path / "journal")
    talks = [
        exchanges("u: Well?", "a: 400", "u: No, the answer is 408.", "a: Ah.", name="n"),
        exchanges(
            "u: Weather?", call({"town": "Rome"}), tool("Error: no city"), call({"city": "Rome"}),
            tool("12"), "a: 12.", tools=[WEATHER], name="w",
        ),
    ]  # fmt: skip
    for exchange in sorted(sum(talks, []), key=lambda exchange: exchange.time):
        journal.record(exchange)
    [file] = journal.folder.iterdir()
    with file.open("a") as written:
        written.write("{\n")
    return journal.folder


def test_rows_are_examples_that_the_trainer_reads_and_only_the_owner_can(journal, tmp_path):
    harvested = harvest(read_journals([journal]))
    output = tmp_path / "harvested.jsonl"
    write_rows(output, harvested.rows)
    assert output.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    numbers, calls = read_examples(str(output), input_key="prompt", label_key="label")
    assert numbers == Example(
        [{"role": "user", "content": "Well?"}],
        "408",
        {"verifier": MATHS, "reasons": ["correction"], "exchanges": ["n0"]},
    )
    assert calls.tools == calls.metadata["tools"] == [WEATHER]
    assert calls.label == [{"weather": {"city": ["Rome"]}}]
    assert calls.metadata["verifier"] == TOOL_CALLS


def test_the_summary_counts_reasons_verifiers_and_what_was_skipped(journal, tmp_path):
    conversations = read_journals([journal])
    text = summary(conversations, harvest(conversations), tmp_path / "out.jsonl")
    assert "5 exchanges" in text and "1 lines skipped" in text
    assert ".jsonl:6: not JSON" in text
    assert "failures  2: correction 1, tool_error 1" in text
    assert f"2 prompts to {tmp_path / 'out.jsonl'}: {MATHS} 1, {TOOL_CALLS} 1" in text


def test_the_output_is_whole_or_the_earlier_one(tmp_path):
    output = tmp_path / "out.jsonl"
    write_rows(output, [{"a": 1}])
    with pytest.raises(TypeError):
        write_rows(output, [{"a": 2}, {"a": object()}])
    assert json.loads(output.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("output", "likeness", "message"),
    [("out.json", 0.8, "out.json must end in .jsonl"), ("o.jsonl", 0, "--likeness must lie in")],
)
def test_a_flag_that_cannot_be_is_named(output, likeness, message):
    with pytest.raises(UserError, match=message):
        check(Path(output), likeness)


def test_a_mistake_is_one_line(tmp_path):
    result = run_module("mmrl.harvest", f"--source={tmp_path / 'gone'}", "--output=o.jsonl")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: no journal ") and "Traceback" not in result.stderr
