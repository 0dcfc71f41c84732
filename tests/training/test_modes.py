"""Runs that mix modes: each prompt has its mode's tag, limit, temperature and length penalty."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.rollout.modes import ModeConfig
from mmrl.train import train
from mmrl.training.config import TrainConfig

from .conftest import CONFIG, ROOT

MODES = {
    "brief": ModeConfig("a", 1, 0.5, length_penalty=0.5, solutions=("{label}", "{label}{label}")),
    "long": ModeConfig("b", 3, 1.0, solutions=("{label}>",)),
}


@pytest.fixture
def config(data_file, monkeypatch) -> TrainConfig:
    monkeypatch.chdir(data_file.parent)
    config = configs.load(CONFIG)
    return replace(
        config,
        modes=MODES,
        reward="oracles.copy_letter:score",
        warmstart=replace(config.warmstart, steps=1),
        sampling=replace(config.sampling, max_new_tokens=3),
        evaluation=replace(config.evaluation, prompts=8),
        steps=1,
        updates_per_rollout=1,
        rollouts_interval=1,
    )


@pytest.mark.slow
def test_a_mixed_run_keeps_each_modes_limit_and_temperature(config, tmp_path):
    assert train(config, tmp_path / "run")
    rows = (tmp_path / "run" / "rollouts" / "1.jsonl").read_text().splitlines()
    lengths: dict[str, set[int]] = {"a": set(), "b": set()}
    for row in map(json.loads, rows):
        assert row["prompt"][1:] in {"a>", "b>", "c>", "d>"}
        assert row["group"] % 2 == "ab".index(row["prompt"][0])
        lengths[row["prompt"][0]].add(len(row["response_tokens"]))
    assert lengths["a"] == {1} and max(lengths["b"]) == 3
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    # Scored at the temperature of its own mode, a token has the sampler's log-probability.
    assert metrics["logprob/abs_diff_max"] < 1e-4
    assert metrics["mode/brief/length_mean"] == metrics["eval/brief/length_mean"] == 1
    assert 1 < metrics["mode/long/length_mean"] <= 3
    both = np.mean([metrics["mode/brief/length_mean"], metrics["mode/long/length_mean"]])
    assert metrics["response/length_mean"] == pytest.approx(both)
    for name in MODES:
        assert 0 <= metrics[f"eval/{name}/solved"] <= 1


def test_a_config_with_modes_survives_json_and_overrides(config, tmp_path):
    configs.save_json(config, tmp_path / "config.json")
    assert configs.load_json(TrainConfig, tmp_path / "config.json") == config
    changed = configs.override(config, {"modes.brief.temperature": "0.7"})
    assert changed.modes["brief"] == replace(MODES["brief"], temperature=0.7)


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("modes.long.max_new_tokens", "9", "more than sampling.max_new_tokens=3"),
        ("modes.long.form", "(", "no regular expression"),
        ("modes.long.temperature", "0", "positive temperature"),
        ("cache_memory_fraction", "1.5", "must lie in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(key, text, message, config):
    with pytest.raises(UserError, match=message):
        configs.override(config, {key: text})


def test_the_config_of_the_modes_starts_from_the_quickstarts_model():
    quickstart = configs.load(ROOT / "configs" / "quickstart.py")
    modes = configs.load(ROOT / "configs" / "quickstart_modes.py")
    assert modes.model == quickstart.model and modes.tokenizer == quickstart.tokenizer
    assert Path(modes.initial) == Path("runs/quickstart")
    [draft] = modes.modes["pro"].solutions
    stop = 1
    assert len(draft.replace("{label}", "abcde")) + stop <= modes.sampling.max_new_tokens
