"""Custom generation functions written for slime, on mmrl's sampler."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.slime import split_argv, translate
from mmrl.train import train

CONFIG = Path(__file__).parents[1] / "configs" / "two_letters.py"


@pytest.fixture
def config(tmp_path, monkeypatch):
    rows = [{"prompt": f"{x}>", "label": y} for x, y in itertools.product("abcd", repeat=2)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    config = configs.load(CONFIG)
    return replace(
        config,
        environment=None,
        warmstart=replace(config.warmstart, steps=0),
        rollouts_interval=1,
        steps=1,
    )


def step_of(config, name, directory, **changes) -> tuple[dict, list[dict]]:
    """The metrics and the samples of one step with the function of this name."""
    config = replace(config, custom_generate=f"slime_generation:{name}", **changes)
    assert train(config, directory)
    rows = (directory / "rollouts" / "1.jsonl").read_text().splitlines()
    last = (directory / "metrics.jsonl").read_text().splitlines()[-1]
    return json.loads(last), [json.loads(row) for row in rows]


def test_a_function_of_token_ids_makes_the_episodes_of_the_same_environment(config, tmp_path):
    reward = "slime_generation:reward"
    metrics, rows = step_of(config, "two_letters", tmp_path / "slime", reward=reward)
    assert metrics["logprob/abs_diff_max"] < 1e-4
    own = replace(configs.load(CONFIG), warmstart=config.warmstart, steps=1, rollouts_interval=1)
    assert train(own, tmp_path / "own")
    expected = (tmp_path / "own" / "rollouts" / "1.jsonl").read_text().splitlines()
    names = ("prompt", "response_tokens", "mask", "reward", "logprobs")
    assert [[row[k] for k in names] for row in rows] == [
        [row[k] for k in names] for row in map(json.loads, expected)
    ]
    assert {"completed", "truncated"} == {row["status"] for row in rows}
    assert any(not all(row["mask"]) for row in rows)


def test_text_that_does_not_go_on_from_the_last_turn_begins_anew(config, tmp_path):
    metrics, rows = step_of(config, "by_text", tmp_path / "run")
    assert metrics["logprob/abs_diff_max"] < 1e-4
    assert metrics["episode/turns_mean"] == 2
    assert {row["status"] for row in rows} <= {"completed", "truncated"}
    assert all(all(row["mask"]) and min(row["logprobs"]) < 0 for row in rows)


def test_tokens_that_were_not_drawn_are_not_trained_on(config, tmp_path):
    metrics, rows = step_of(config, "made_up", tmp_path / "run")
    assert metrics["episode/status/failed"] == 1
    assert not any(row["in_loss"] for row in rows)
    assert "was not drawn" in rows[0]["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("warm", "temperature=0.1, the run has 1.0"),
        ("several", "must return one Sample, got list"),
        ("two_leters", "Did you mean two_letters"),
    ],
)
def test_what_cannot_be_trained_on_is_one_clear_line(name, message, config, tmp_path):
    with pytest.raises(UserError, match=message):
        step_of(config, name, tmp_path / "run")


def test_the_flag_names_the_function_and_its_limits(config):
    line = (
        "train --custom-generate-function-path my.generate --rollout-max-response-len 20 "
        "--rollout-max-context-len 70 --rollout-max-prompt-len 30"
    )
    found = translate(split_argv(line.split())[1], config, workdir="runs/x").config
    assert found.custom_generate == "my.generate"
    assert found.episodes.limits.turn_tokens == 20 and found.episodes.limits.tokens == 40
    assert found.reward == "mmrl.rewards.environment:score"
    line = "train --rollout-max-context-len 70"
    with pytest.raises(UserError, match="leave out --rollout-max-context-len"):
        translate(split_argv(line.split())[1], config, workdir="runs/x")
