"""The runs of a study: over processes, resumed after a kill, refused in another's directory."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from study_member import configs_of

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.studies.cispo_vs_dapo import compare, draw
from mmrl.studies.numerics import compare_heads, small_moments
from mmrl.studies.runs import core_shares, is_finished, run_all

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("cores", "processes", "shares"),
    [
        ([0, 1, 2, 3, 4], 2, [(0, 2, 4), (1, 3)]),
        ([3, 7], 2, [(3,), (7,)]),
        ([0, 1], 3, [(0,), (1,), (0,)]),
    ],
)
def test_processes_share_the_cores(cores, processes, shares):
    assert core_shares(cores, processes) == shares


def test_a_directory_of_another_config_is_refused(tmp_path):
    config = configs.load(TESTS / "configs" / "copy_letter.py")
    (tmp_path / "run").mkdir()
    configs.save_json(replace(config, seed=1), tmp_path / "run" / "config.json")
    with pytest.raises(UserError, match="run holds a run of another config; choose another"):
        run_all({"run": config}, tmp_path, 1)
    (tmp_path / "run" / "checkpoints" / str(config.steps + config.warmstart.steps)).mkdir(
        parents=True
    )
    configs.save_json(config, tmp_path / "run" / "config.json")
    assert is_finished(tmp_path / "run", config)
    run_all({"run": config}, tmp_path, 1)  # nothing is left to run


def start(directory: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "XLA_FLAGS": ""}
    command = [sys.executable, str(TESTS / "study_member.py"), "study", "data.jsonl"]
    return subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker(process: subprocess.Popen) -> int:
    """The process that trains for `process`."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    [found] = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return int(found)


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_study_whose_process_was_killed_goes_on_where_it_was(tmp_path):
    """And what it wrote has all that the studies read."""
    data = [{"prompt": f"{letter}>", "label": letter} for letter in "abcd"] * 4
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    first, second = (tmp_path / "study" / f"seed{seed}" for seed in (0, 1))
    process = start(tmp_path)
    deadline = time.monotonic() + 240
    while not (second / "checkpoints" / "5").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    os.kill(worker(process), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "[1/2]" in output and "Traceback" not in output
    assert "a process of the study was killed; the same command goes on" in output
    written = (first / "metrics.jsonl").stat().st_mtime_ns

    process = start(tmp_path)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "[2/2]" in output and "[1/2]" not in output, output
    assert (first / "metrics.jsonl").stat().st_mtime_ns == written
    for run, begins in ((first, 1), (second, 2)):
        found = rows(run)
        assert [row["step"] for row in found] == list(range(41))
        assert len([row for row in found if "time/first_step_seconds" in row]) == begins

    found = compare({"cispo": [first, second], "dapo": [first, second]})
    last = [rows(run)[-1]["eval/solved"] for run in (first, second)]
    assert found["held_out_solved"]["dapo"][0] == pytest.approx(sum(last) / 2)
    dropped = [row["loss/dropped_fraction"] for run in (first, second) for row in rows(run)[1:]]
    assert found["means"]["dropped_fraction"]["dapo"] == pytest.approx(sum(dropped) / 80)
    bins = found["by_probability"]["dapo"]
    whole = sum(n * d for n, d in zip(bins["tokens"], bins["dropped"], strict=True) if n)
    assert whole == pytest.approx(sum(dropped) / 80, abs=1e-6)
    draw({"cispo": [first], "dapo": [first, second]}, tmp_path / "curves.svg")
    assert "</svg>" in (tmp_path / "curves.svg").read_text()

    heads = compare_heads(second, configs_of(str(tmp_path / "data.jsonl"))["seed1"])
    assert 0.99 < heads["correlation"] < 1 and 1e-5 < heads["logprob_difference"] < 1e-1
    shares = [small_moments(second, bound) for bound in (1e-30, 1e-8, 1e-3, 1e3)]
    assert shares == sorted(shares) and shares[0] == 0 and 0 < shares[2] < 1 and shares[3] == 1
