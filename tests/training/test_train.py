"""The training binary: it learns, logs what it promises, and survives kills and mistakes."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.train import train

CONFIG = Path(__file__).parents[1] / "configs" / "copy_letter.py"

EVERY_RL_STEP = {
    "step",
    "reward/mean",
    "reward/std",
    "reward/solved",
    "response/length_mean",
    "response/truncated",
    "loss/policy",
    "loss/clip_fraction",
    "policy/entropy",
    "logprob/abs_diff_mean",
    "logprob/abs_diff_max",
    "grad/norm",
    "optimizer/lr",
    "time/rollout_seconds",
    "time/update_seconds",
    "time/step_seconds",
    "throughput/tokens_per_second",
    "throughput/mfu",
    "tokens/total",
}


def metrics_rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))} for row in rows
    ]


def final_arrays(workdir: Path) -> dict[tuple, np.ndarray]:
    """Parameters and optimizer state of the newest checkpoint, by path."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())
    return ocp.tree.to_flat_dict({name: state[name] for name in ("params", "opt_state")})


def finish(process) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_rows(process, workdir: Path, rows: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and len(metrics_rows_so_far(workdir)) >= rows:
            return
        time.sleep(0.01)
    raise AssertionError(f"{rows} rows never came; the process ended with {process.poll()}")


def metrics_rows_so_far(workdir: Path) -> list[bytes]:
    return (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]


def test_a_policy_learns_to_copy_by_cispo_alone(data_file, tmp_path, monkeypatch):
    """From chance (1 in 4 at best) to solving nearly everything; no supervised step helps."""
    monkeypatch.chdir(data_file.parent)
    config = configs.load(CONFIG)
    config = replace(
        config,
        steps=80,
        warmstart=replace(config.warmstart, steps=0),
        evaluation=replace(config.evaluation, interval=40),
        checkpoint=replace(config.checkpoint, interval=80),
    )
    assert train(config, tmp_path / "run")
    rows = metrics_rows(tmp_path / "run")
    assert rows[0]["eval/solved"] < 0.4
    assert rows[-1]["eval/solved"] > 0.9
    assert max(row["logprob/abs_diff_max"] for row in rows[1:]) < 1e-4


@pytest.mark.slow
def test_a_run_killed_at_any_moment_continues_bit_for_bit(start, tmp_path):
    """SIGKILL after several rows of both phases; metrics (times aside) and parameters are equal."""
    finish(start(tmp_path / "whole"))
    whole = metrics_rows(tmp_path / "whole")
    killed = tmp_path / "killed"
    for rows in (2, 5, 8):
        process = start(killed)
        wait_for_rows(process, killed, rows)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(killed))
    assert without_times(metrics_rows(killed)) == without_times(whole)
    assert len(whole) == 1 + 2 + 1 + 6
    leaves, others = final_arrays(tmp_path / "whole"), final_arrays(killed)
    assert leaves.keys() == others.keys() and len(leaves) > 40
    for name, leaf in leaves.items():
        assert np.array_equal(np.asarray(leaf), np.asarray(others[name])), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number, start, tmp_path):
    run = tmp_path / "run"
    process = start(run, "checkpoint.interval=1000")
    wait_for_rows(process, run, 5)
    process.send_signal(number)
    output = finish(process)
    assert "the same command continues" in output and "Traceback" not in output
    stopped = len(metrics_rows(run))
    assert stopped < 10
    finish(start(run, "checkpoint.interval=1000"))
    assert [row["step"] for row in metrics_rows(run)] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_run_directory_holds_what_the_interface_names(start, tmp_path):
    run = tmp_path / "run"
    finish(start(run))
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "metrics.jsonl", "checkpoints", "rollouts", "tensorboard", "report.html", "config.json"
    }  # fmt: skip
    rows = [row for row in metrics_rows(run) if row["phase"] == "rl" and row["step"]]
    assert all(row.keys() >= EVERY_RL_STEP for row in rows)
    evaluated = [row["step"] for row in rows if "eval/reward" in row and "eval/solved" in row]
    assert evaluated == [4, 6]
    assert sorted(path.stem for path in (run / "rollouts").iterdir()) == ["3", "6"]
    rollouts = [
        json.loads(line) for line in (run / "rollouts" / "3.jsonl").read_text().splitlines()
    ]
    assert len(rollouts) == 8 * 8
    assert json.loads((run / "config.json").read_text())["steps"] == 6


@pytest.mark.slow
def test_gradients_that_stay_non_finite_stop_the_run_with_one_clear_line(start, tmp_path):
    process = start(tmp_path / "run", "optimizer.learning_rate=1e38", "steps=30")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "gradients in a row were not finite" in output and "Traceback" not in output
    rows = metrics_rows(tmp_path / "run")
    assert rows[-1]["optimizer/skipped"] >= 5 and rows[-1]["step"] < 30


MISTAKES = {
    "sampling.temprature=1": "Did you mean sampling.temperature",
    "steps=many": "config.steps",
    "prompts_per_step=7": "must be a multiple of",
    "mesh.tensor=3": "needs 3 devices but 1 are there",
    "data.source=nowhere.jsonl": "no data file nowhere.jsonl",
    "reward=oracles.copy_letter:scor": "Did you mean score",
    "prompt_length=1": "prompt 0 has 2 tokens; it must have 1 to 1",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_remedy(mistake, data_file, tmp_path, monkeypatch):
    monkeypatch.chdir(data_file.parent)
    key, _, value = mistake.partition("=")
    with pytest.raises(UserError) as error:
        train(configs.override(configs.load(CONFIG), {key: value}), tmp_path / "run")
    assert MISTAKES[mistake] in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_ends_the_program_with_its_line_alone(start, tmp_path):
    """Before the run starts, and after."""
    for mistake in ("steps=many", "prompt_length=1"):
        process = start(tmp_path / "run", mistake)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2
        assert MISTAKES[mistake] in output and "Traceback" not in output
