"""Progress is a live bar on a terminal, log lines elsewhere, and silent off the first process."""

import io
import logging
import sys

import pytest
from absl import logging as absl_logging
from rich.console import Console

from mmrl.report import progress as progress_lib
from mmrl.report.metrics import MetricsWriter
from mmrl.report.progress import Progress, describe, print_summary

METRICS = {
    "reward/mean": 0.5,
    "reward/solved": 0.25,
    "response/length_mean": 96.4,
    "throughput/tokens_per_second": 12345.6,
}


def plain_console():
    return Console(file=io.StringIO(), width=100, force_terminal=False)


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=140, _environ={"TERM": "xterm"})


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic that moves 10 seconds at each reading."""
    readings = iter(range(0, 100_000, 10))
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: next(readings))


def test_row_is_described_by_the_numbers_a_person_watches():
    assert describe(METRICS) == "reward 0.500  solved 25%  length 96  12,346 tokens/s"
    assert describe({"loss/supervised": 1.5, "reward/mean": None}) == "loss 1.5000"


def test_without_a_terminal_lines_come_at_the_interval_with_the_time_left(clock, caplog):
    with Progress(10, line_seconds=25, console=plain_console()) as progress:
        for step in range(1, 11):
            progress.update(step, METRICS)
    assert [record.message.split()[1] for record in caplog.records] == [
        "1/10",
        "4/10",
        "7/10",
        "10/10",
    ]
    assert caplog.records[0].message.endswith("12,346 tokens/s  1:30 left")
    assert caplog.records[0].levelno == logging.INFO


def test_every_evaluation_has_a_line_of_its_own(clock, caplog):
    with Progress(20, line_seconds=1e9, console=plain_console()) as progress:
        progress.update(0, {"eval/reward": 0.1, "eval/solved": 0.0})
        for step in range(1, 6):
            progress.update(step, METRICS | ({"eval/reward": 0.75} if step == 3 else {}))
    lines = [record.message for record in caplog.records if "evaluation" in record.message]
    assert lines == [
        "RL 0/20  evaluation: reward 0.100  solved 0.0%",
        "RL 3/20  evaluation: reward 0.750",
    ]


def test_on_a_terminal_the_bar_shows_the_step_and_numbers_and_logs_nothing(caplog):
    console = terminal()
    with Progress(10, phase="warmstart", console=console) as progress:
        for step in range(1, 11):
            progress.update(step, {"loss/supervised": 2.0 / step, "eval/solved": 0.5})
    shown = console.file.getvalue()
    assert "warm start" in shown
    assert "10/10" in shown
    assert "loss 0.2000" in shown
    assert "evaluation: solved 50.0%" in shown
    assert caplog.records == []


def test_absl_log_follows_the_stream_that_the_bar_replaces(monkeypatch):
    handler = absl_logging.get_absl_handler().python_handler
    monkeypatch.setattr(handler, "stream", sys.stderr)
    with Progress(1, console=terminal()):
        assert handler.stream is sys.stderr
        assert handler.stream is not sys.__stderr__
    assert handler.stream is sys.stderr


def test_other_processes_are_silent(caplog, tmp_path):
    for console in (plain_console(), terminal()):
        with Progress(1, primary=False, console=console) as progress:
            progress.update(1, METRICS | {"eval/reward": 1.0})
        print_summary(tmp_path, primary=False, console=console)
        assert console.file.getvalue() == ""
    assert caplog.records == []


def test_summary_puts_evaluations_side_by_side_and_names_the_report(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"eval/reward": 0.125, "eval/solved": 0.0}, "warmstart")
        writer.write(5, {"eval/reward": 0.25, "eval/solved": 0.1}, "warmstart")
        writer.write(1, METRICS)
        writer.write(2, METRICS | {"eval/reward": 0.875, "eval/solved": 0.8125})
    console = plain_console()
    print_summary(tmp_path, console=console)
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert "before ┃ after warm start ┃ after RL" in console.file.getvalue()
    assert ["reward", "0.125", "0.25", "0.875"] in lines
    assert ["solved", "0.0%", "10.0%", "81.2%"] in lines
    assert lines[-1] == ["report:", str(tmp_path / "report.html")]
