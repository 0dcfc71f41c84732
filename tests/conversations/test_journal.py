"""The journal: whole lines whoever writes, private, redacted, and never in the way of a request."""

import errno
import json
import logging
import multiprocessing
import os
import threading
from dataclasses import fields, replace

import pytest

from mmrl.conversations import Exchange, Journal
from mmrl.errors import UserError

EXCHANGE = Exchange(
    id="r1",
    time=1.5,
    api="openai",
    mode="pro",
    messages=[{"role": "user", "content": "Mail ada@example.org"}],
    tools=None,
    response={"role": "assistant", "content": "naïve \ud800 answer\u2028"},
    finish_reason="stop",
    prompt_tokens=3,
    completion_tokens=2,
)


def lines(folder) -> list[dict]:
    found = [file.read_bytes() for file in folder.iterdir()]
    assert all(text.endswith(b"\n") for text in found)
    return [json.loads(line) for text in found for line in text.split(b"\n") if line]


def test_an_exchange_and_its_feedback_are_a_line_each_and_redacted(tmp_path):
    journal = Journal(tmp_path / "new" / "journal")
    journal.record(EXCHANGE)
    journal.feedback("r1", "down", comment="my key is ghp_" + "a1" * 18, reward=-1.0)
    exchange, feedback = lines(journal.folder)
    assert exchange.pop("kind") == "exchange"
    assert exchange.keys() == {field.name for field in fields(Exchange)}
    assert exchange["messages"] == [{"role": "user", "content": "Mail [REDACTED:email]"}]
    assert exchange["response"] == EXCHANGE.response
    assert feedback["kind"] == "feedback" and feedback["exchange"] == "r1"
    assert (feedback["rating"], feedback["reward"]) == ("down", -1.0)
    assert feedback["comment"] == "my key is [REDACTED:api_key]"
    assert journal.lost == 0


def test_only_the_owner_can_read(tmp_path):
    umask = os.umask(0)
    try:
        journal = Journal(tmp_path / "journal")
        journal.record(EXCHANGE)
    finally:
        os.umask(umask)
    [file] = journal.folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert journal.folder.stat().st_mode & 0o777 == 0o700


def _write(folder, name: str, count: int) -> None:
    journal = Journal(folder)

    def work(thread: int) -> None:
        for i in range(count):
            text = f"{name}.{thread}.{i} " * (1 + i * 50)
            journal.record(replace(EXCHANGE, id=f"{name}.{thread}.{i}", user=text))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.lost == 0


def test_lines_of_several_processes_and_threads_stay_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, f"w{i}", 40)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = lines(tmp_path)
    assert {entry["id"] for entry in found} == {
        f"w{w}.{t}.{i}" for w in range(3) for t in range(3) for i in range(40)
    }
    assert len(found) == 360
    assert all(set(entry["user"].split()) == {entry["id"]} for entry in found)


def test_a_full_disk_is_logged_once_and_counted_and_the_next_line_is_whole(
    tmp_path, monkeypatch, caplog
):
    journal = Journal(tmp_path)
    write = os.write

    def full(file, text):
        if len(text) > 20:
            write(file, text[:20])
            return 20
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(os, "write", full)
        for _ in range(3):
            journal.record(EXCHANGE)
    assert journal.lost == 3
    assert len(caplog.records) == 1 and str(tmp_path) in caplog.text
    journal.record(EXCHANGE)
    [file] = tmp_path.iterdir()
    *begun, last = file.read_bytes().splitlines()
    assert len(begun) == 3 and json.loads(last)["id"] == "r1"


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_what_is_no_json_is_counted_and_raises_nothing(value, tmp_path):
    journal = Journal(tmp_path)
    journal.record(replace(EXCHANGE, reward=value))
    assert journal.lost == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="journal's folder .*file"):
        Journal(tmp_path / "file" / "journal")
