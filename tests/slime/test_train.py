"""Argument lists of slime train as they stand, with a local checkpoint for the name of a hub's.

The further flags only make the runs tiny: one step, few prompts, short responses.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from subprocesses import environment
from tiny_run import run_module

from mmrl import config as configs
from mmrl.slime import configure, split_argv
from mmrl.train import train
from mmrl.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
TINY = "--num-rollout 1 --rollout-batch-size 2 --n-samples-per-prompt 2"
LISTS = {
    "agent": (
        "--advantage-estimator cispo --eps-clip-high 5.0 --rm-type custom "
        "--custom-rm-path my.agent_reward --prompt-data agent_trajectories.parquet "
        "--metadata-key tool_calls --rollout-max-response-len 4096"
    ),
    "model": "--hf-checkpoint {model} --advantage-estimator cispo --n-samples-per-prompt 8",
    "lightning": (
        "--sglang-mem-fraction-static 0.6 --rollout-max-response-len 512 --rollout-temperature 0.8"
    ),
    "pro": (
        "--sglang-mem-fraction-static 0.9 --rollout-max-response-len 8192 --rollout-temperature 1.0"
    ),
}


def configured(line: str, workdir: str | None = None) -> tuple[TrainConfig, Path]:
    rest, given = split_argv(["train.py", *line.split()])
    assert rest == ["train.py"]
    return configure(None, workdir, given, {})


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_alone_make_a_config(name, checkpoint, place):
    config, _ = configured(LISTS[name].format(model=checkpoint))
    assert isinstance(config, TrainConfig)
    expected = {"agent": 4096, "lightning": 512, "pro": 8192}.get(name, 128)
    assert config.sampling.max_new_tokens == expected
    assert config.cache_memory_fraction == {"lightning": 0.6, "pro": 0.9}.get(name)
    assert config.sampling.temperature == (0.8 if name == "lightning" else 1.0)
    assert config.sampling.group_size == 8


@pytest.mark.parametrize(
    "name, further",
    [
        ("agent", "--hf-checkpoint {model}"),
        ("model", "--rollout-max-prompt-len 128"),
        pytest.param("agent", "", marks=pytest.mark.slow),  # parameters are random
        pytest.param("lightning", "--hf-checkpoint {model}", marks=pytest.mark.slow),
        pytest.param("pro", "--hf-checkpoint {model}", marks=pytest.mark.slow),
    ],
)
def test_the_lists_train(name, further, checkpoint, place):
    line = f"{LISTS[name]} {TINY} --rollout-max-response-len 6 {further} --save run"
    config, workdir = configured(line.format(model=checkpoint))
    config = configs.override(config, {"evaluation.prompts": "2"})
    assert train(config, workdir)
    row = metrics(workdir)[-1]
    assert row["step"] == 1 and row["phase"] == "rl"
    assert row["reward/failed"] == 0
    assert 0 < row["response/length_mean"] <= 6
    assert row["logprob/abs_diff_max"] < 1e-4


@pytest.mark.slow
def test_a_command_line_trains_and_names_the_silent_lower_bound(checkpoint, place):
    line = f"{LISTS['agent']} --hf-checkpoint {checkpoint} {TINY} --rollout-max-response-len=4"
    done = subprocess.run(
        [sys.executable, "-m", "mmrl.train", *line.split(), "--save=run"],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "[0.8, 6]" in done.stderr and "--eps-clip 1.0" in done.stderr
    assert metrics(place / "run")[-1]["step"] == 1
    saved = configs.load_json(TrainConfig, place / "run" / "config.json")
    assert (saved.objective.eps_low, saved.objective.eps_high) == (0.2, 5.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name a config, --config=FILE, or a model, --hf-checkpoint DIR"),
        (["--rollout-max-respons-len=4"], "Did you mean --rollout-max-response-len?"),
        (["--config=configs/quickstart.py"], "name the directory of the run: --workdir=DIR"),
        (["--lr=1", "--sglang-port=3"], "--sglang-port (the sampler is the trainer's own"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments, message):
    done = run_module("mmrl.train", *arguments)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in done.stderr


def test_load_of_another_run_starts_from_it_and_of_the_same_goes_on(checkpoint, place):
    line = f"{LISTS['agent']} {TINY} --rollout-max-response-len 4 --hf-checkpoint {checkpoint}"
    config, workdir = configured(f"{line} --save first")
    assert config.initial == str(checkpoint)
    assert train(config, workdir)
    again, _ = configured(f"{line} --save first --load first")
    assert again == config
    further, _ = configured(f"{line} --save second --load first")
    assert further.initial == "first"
    assert further.model == config.model
    assert further.tokenizer == config.tokenizer
    assert train(further, Path("second"))


def test_a_filter_and_a_group_reward_of_slime_train(checkpoint, place):
    line = (
        f"{LISTS['agent']} --hf-checkpoint {checkpoint} {TINY} --rollout-max-response-len 4 "
        "--custom-rm-path rewards.slime_style.ranks --group-rm "
        "--dynamic-sampling-filter-path rewards.slime_style.keep_even"
    )
    config, workdir = configured(f"{line} --save run")
    assert config.group_reward and config.dynamic_sampling_rounds > 1
    assert train(config, workdir)
    row = metrics(workdir)[-1]
    assert row["reward/failed"] == 0
    assert row["reward/mean"] == pytest.approx(0.5)  # ranks 0 and 1 of each group of two
    assert row["reward/informative"] == pytest.approx(0.5)  # every other group is kept
