"""Training by episodes in an environment: learns, logs, replays and goes on exactly."""

import itertools
import json
from pathlib import Path

import pytest
from tiny_run import run_module

CONFIG = Path(__file__).parents[1] / "configs" / "two_letters.py"


@pytest.fixture
def run(tmp_path):
    """Trains in a directory of this name, with overrides; returns the metrics, times aside."""
    data = tmp_path / "data.jsonl"
    rows = [
        {"prompt": f"{x}>", "label": [x, f"{y}>", y]}
        for x, y in itertools.product("abcd", repeat=2)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, *overrides: str, error: str | None = None) -> list[dict]:
        overrides = (f"data.source={data}", f"evaluation.data.source={data}", *overrides)
        arguments = [f"--config.{override}" for override in overrides]
        directory = tmp_path / name
        done = run_module("mmrl.train", f"--config={CONFIG}", f"--workdir={directory}", *arguments)
        if error is not None:
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
            assert error in done.stderr
            return []
        assert done.returncode == 0, done.stderr
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(x).items() if not k.startswith(("time/", "throughput/"))}
            for x in lines
        ]

    return run


def test_a_short_warm_start_and_episodes_raise_the_solve_rate(run, tmp_path):
    rows = run("run", "warmstart.steps=40", "steps=60", "checkpoint.interval=1000")
    started = next(row for row in rows if row["phase"] == "rl")
    assert started["eval/solved"] < 0.6
    last = rows[-1]
    assert last["eval/solved"] > 0.85
    assert max(row.get("logprob/abs_diff_max", 0) for row in rows) < 1e-4
    assert last["episode/status/completed"] > 0.9 and last["episode/turns_mean"] > 1.9
    # A letter and the end, twice; and the environment's letter with its mark between them.
    assert last["episode/drawn_tokens_mean"] == pytest.approx(4, abs=0.2)
    assert last["response/length_mean"] == pytest.approx(6, abs=0.3)
    assert last["tools/asked"] == pytest.approx(2, abs=0.1)
    assert 0 < last["rollout/occupancy"] <= 1
    assert last["eval/turns_mean"] > 1.9
    evaluated = run_module("mmrl.evaluate", f"--checkpoint={tmp_path / 'run'}", "--json", "--n=4")
    [summary] = json.loads(evaluated.stdout).values()
    assert summary["problems"] == 16 and summary["figures"]["avg@4"]["mean"] > 0.8


@pytest.mark.slow
def test_a_continued_run_is_the_same_run_whatever_time_the_environments_take(run):
    settings = ("warmstart.steps=0", "evaluation.interval=2", "dynamic_sampling_rounds=2")
    whole = run("whole", *settings, "steps=4")
    slow = "environment.settings.delay=0.003"
    run("continued", *settings, "steps=2", slow)
    assert run("continued", *settings, "steps=4", slow) == whole
    assert len(whole) == 5


def test_an_environment_that_breaks_leaves_its_episodes_out(run, tmp_path):
    settings = ("warmstart.steps=0", "steps=1", "rollouts_interval=1")
    start, step = run("run", *settings, "environment.settings.fails=b")
    assert start["eval/status/failed"] == 0.25
    assert step["logprob/abs_diff_max"] < 1e-4
    rows = [json.loads(x) for x in (tmp_path / "run/rollouts/1.jsonl").open()]
    assert len(rows) == 64 and any(row["status"] == "failed" for row in rows)
    for row in rows:
        assert (row["status"] == "failed") == (row["prompt"] == "b>")
        if row["status"] == "failed":
            assert row["advantage"] == 0 and row["in_loss"] is False
            assert row["error"] == "ConnectionError: no letters"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.settings.prompts_differ=true", "may depend on the example alone"),
        ("environment.settings.delays=1", "unexpected keyword argument 'delays'"),
        ("episodes.statuses.trunkated.reward=0", "Did you mean truncated?"),
    ],
)
def test_a_mistake_in_an_environment_is_one_line(override, message, run):
    run("run", "warmstart.steps=0", override, error=message)
