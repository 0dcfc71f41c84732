"""Length stages: when the next begins, and what it changes in the config."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.rollout import Rollout
from mmrl.training.config import TrainConfig
from mmrl.training.rollouts import rollout_metrics
from mmrl.training.stages import M1_LENGTHS, LengthStages, Stage, StageState, advance

STAGES = LengthStages((Stage(8), Stage(10), Stage(12)), window=4)


def after(steps, config: LengthStages = STAGES) -> StageState:
    """The state after steps of (perplexity, 99th percentile), saved and read after each."""
    state = StageState()
    for perplexity, length in steps:
        saved = json.loads(json.dumps(vars(advance(config, state, perplexity, length))))
        state = StageState.of(saved)
    return state


def test_the_papers_stages_grow_by_eight_times_1024_from_40():
    assert [length // 1024 for length in M1_LENGTHS] == [40, 48, 56, 64, 72, 80]


@pytest.mark.parametrize(
    ("perplexities", "length", "index"),
    [
        ((2.0, 2.0, 2.0, 2.0), 8, 1),  # converged and long
        ((2.0, 2.0, 2.0, 2.0), 7, 0),  # short: 7 < 0.9 · 8
        ((2.0, 1.9, 1.8, 1.7), 8, 0),  # still falling
        ((2.0, 2.0, 2.0), 8, 0),  # less than a window
        ((9.0, 2.0, 2.0, 2.0, 2.0), 8, 1),  # the last window counts
    ],
)
def test_a_stage_ends_when_both_conditions_hold_over_a_window(perplexities, length, index):
    state = after((perplexity, length) for perplexity in perplexities)
    assert state.index == index
    assert len(state.perplexities) == (0 if index else min(len(perplexities), 4))


def test_each_stage_is_measured_from_its_own_start_by_its_own_limit_and_the_last_stays():
    assert after([(2.0, 8)] * 7).index == 1  # 8 is short of 0.9 · 10 from now on
    assert after([(2.0, 8)] * 40).index == 1
    assert after([(2.0, 8)] * 4 + [(2.0, 10)] * 4).index == 2
    assert after([(2.0, 8)] * 4 + [(2.0, 12)] * 40).index == 2


def test_a_stage_sets_its_limit_and_what_it_tightens_and_leaves_the_rest():
    config: TrainConfig = configs.load(Path(__file__).parents[1] / "configs" / "copy_letter.py")
    late = Stage(5, eps_high=1.5, aggregation="combined", clip_norm=0.25)
    config = replace(config, length_stages=LengthStages((Stage(2), late)))
    first, second = config.at_stage(0), config.at_stage(1)
    assert first == replace(config, sampling=replace(config.sampling, max_new_tokens=2))
    assert second.sampling.max_new_tokens == 5
    assert second.objective.options()["eps_high"] == 1.5
    assert second.objective.aggregation == "combined" and second.optimizer.clip_norm == 0.25
    assert replace(config, length_stages=LengthStages()).at_stage(0).sampling == config.sampling


def test_perplexity_is_that_of_the_kept_tokens_and_the_percentile_that_of_all_lengths():
    rng = np.random.default_rng(0)
    logprobs, mask = -rng.exponential(size=(3, 4, 5)), rng.integers(0, 2, (3, 4, 5))
    lengths = rng.integers(1, 6, (3, 4))
    zeros = np.zeros((3, 4))
    rollout = Rollout(
        prompt_tokens=np.zeros((3, 1), int),
        prompt_lengths=np.ones(3, int),
        tokens=np.zeros((3, 4, 5), int),
        lengths=lengths,
        mask=mask,
        behaviour_logprobs=logprobs,
        support=None,
        status=zeros,
        reward=zeros,
        advantages=zeros,
    )
    metrics = rollout_metrics(rollout)
    expected = np.exp(-np.mean(logprobs[mask > 0]))
    assert metrics["response/perplexity"] == pytest.approx(expected, rel=1e-5)
    assert metrics["response/length_p99"] == np.percentile(lengths, 99)


@pytest.mark.parametrize(
    "settings", [dict(stages=(Stage(8), Stage(8))), dict(window=1), dict(length_share=0.0)]
)
def test_impossible_stages_are_refused(settings):
    with pytest.raises(ValueError, match=r"stages"):
        LengthStages(**settings)


def test_the_m1_config_goes_through_the_papers_lengths_and_is_tighter_in_late_stages():
    config: TrainConfig = configs.load(Path(__file__).parents[2] / "configs" / "minimax_m1.py")
    stages = [config.at_stage(index) for index in range(len(config.length_stages.stages))]
    assert tuple(stage.sampling.max_new_tokens for stage in stages) == M1_LENGTHS
    bounds = [stage.objective.options()["eps_high"] for stage in stages]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < bounds[0]
    clips = [stage.optimizer.clip_norm for stage in stages]
    assert clips == sorted(clips, reverse=True) and clips[-1] < clips[0]
    assert {stage.sampling.repetition_stop.tokens for stage in stages} == {3000}
