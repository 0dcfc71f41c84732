"""Rewards of a rollout, and dynamic sampling: which groups a step keeps of several rollouts."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import config as configs
from mmrl import slime
from mmrl.data import Example, Sample, Status
from mmrl.environments import Episode, EpisodeConfig, StatusRule
from mmrl.rewards.mixture import WeightedReward
from mmrl.rewards.slime_functions import reward_function
from mmrl.rollout import Rollout
from mmrl.rollout.modes import ModeConfig, with_modes
from mmrl.training.config import TrainConfig
from mmrl.training.rollouts import (
    filtered,
    informative_groups,
    keep_informative,
    reward_rollout,
    rollout_rows,
    with_advantages,
)


def rollout(first: int, rewards: list[list[float]], failed: tuple[tuple[int, int], ...] = ()):
    """Groups whose prompts hold the tokens `first`, `first` + 1, …, with the given rewards."""
    reward = jnp.asarray(rewards)
    groups, size = reward.shape
    status = np.full((groups, size), int(Status.COMPLETED))
    for index in failed:
        status[index] = int(Status.FAILED)
    tokens = jnp.zeros((groups, size, 2), jnp.int32)
    return Rollout(
        prompt_tokens=first + jnp.arange(groups)[:, None],
        prompt_lengths=jnp.ones(groups, jnp.int32),
        tokens=tokens,
        lengths=jnp.ones((groups, size), jnp.int32),
        mask=jnp.ones(tokens.shape),
        behaviour_logprobs=jnp.zeros(tokens.shape),
        support=None,
        status=jnp.asarray(status),
        reward=reward,
        advantages=jnp.zeros((groups, size)),
        metadata=tuple(f"prompt {first + i}" for i in range(groups)),
    )


def test_a_failed_reward_makes_no_group_informative():
    groups = rollout(0, [[0, 1], [1, 1], [0, 1]], failed=((2, 0),))
    assert informative_groups(groups).tolist() == [True, False, False]


def test_informative_groups_of_all_rounds_come_first_and_others_fill_up():
    rounds = [rollout(10, [[0, 0], [0, 1], [1, 1]]), rollout(20, [[1, 0], [1, 1], [0, 0]])]
    kept = keep_informative(rounds, 3)
    assert kept.prompt_tokens[:, 0].tolist() == [11, 20, 10]
    assert kept.metadata == ("prompt 11", "prompt 20", "prompt 10")
    assert kept.reward.tolist() == [[0, 1], [1, 0], [0, 0]]


def test_more_informative_groups_than_wanted_are_cut():
    rounds = [rollout(10, [[0, 1], [1, 1]]), rollout(20, [[1, 0], [0, 1]])]
    assert keep_informative(rounds, 2).prompt_tokens[:, 0].tolist() == [10, 20]


def test_one_round_is_kept_as_it_is():
    only = rollout(10, [[1, 1], [0, 1]])
    assert keep_informative([only], 2) is only


def test_a_filter_chooses_groups_and_takes_the_others_out_of_the_loss():
    groups = rollout(10, [[0, 1], [1, 1], [0, 0]])
    samples = tuple([Sample(reward=r) for r in group] for group in ([0, 1], [1, 1], [0, 0]))
    groups = groups.replace(metadata=samples)
    kept, chosen = filtered(groups, lambda samples: sum(s.reward for s in samples) != 1)
    assert chosen.tolist() == [False, True, True]
    assert kept.mask.sum(axis=(1, 2)).tolist() == [0, 4, 4]
    same, informative = filtered(groups, None)
    assert same is groups and informative.tolist() == [True, False, False]
    joined = keep_informative([kept, kept], 3, [chosen, chosen])
    assert joined.prompt_tokens[:, 0].tolist() == [11, 12, 11]


def scored(config: TrainConfig, reward, modes=None, prompts: int = 4):
    """Rewards of two samples each of `prompts` prompts, whose responses are 'a', 'aa', 'aaa', …"""
    tokenizer = config.tokenizer
    config = replace(config, modes=modes or {}, sampling=replace(config.sampling, max_new_tokens=8))
    lengths = np.arange(1, 2 * prompts + 1).reshape(prompts, 2)
    tokens = np.zeros((prompts, 2, 8), np.int32)
    tokens[np.arange(8) < lengths[..., None]] = tokenizer.encode("a")[0]
    examples = with_modes([Example("a>", label="a")] * prompts, config.modes)
    groups = rollout(3, np.zeros((prompts, 2)).tolist()).replace(
        tokens=jnp.asarray(tokens),
        lengths=jnp.asarray(lengths),
        mask=jnp.asarray(np.arange(8) < lengths[..., None], jnp.float32),
        behaviour_logprobs=jnp.zeros(tokens.shape),
        metadata=tuple(examples),
    )
    return reward_rollout(groups, reward, config)


@pytest.fixture
def config() -> TrainConfig:
    return configs.load(Path(__file__).parents[1] / "configs" / "copy_letter.py")


def test_a_group_reward_and_its_key_are_the_configs(config):
    config = replace(config, group_reward=True, reward_key="rank")

    def ranks(samples):
        return [{"rank": float(i), "note": "text"} for i in range(len(samples))]

    judged, metrics = scored(config, ranks)
    assert judged.reward.tolist() == [[0, 1]] * 4
    assert metrics["reward/failed"] == 0


def test_a_sample_that_its_reward_removes_counts_in_the_group_and_not_in_the_loss(config):
    def drops(sample):
        sample.remove_sample = sample.index % 2 == 1
        return float(sample.index % 2)

    judged, _ = scored(config, drops)
    assert judged.reward.tolist() == [[0, 1]] * 4
    assert np.asarray(judged.mask).sum(axis=-1).tolist() == [[1, 0], [3, 0], [5, 0], [7, 0]]
    assert [s.reward for s in judged.metadata[0]] == [0.0, 1.0]


def test_modes_shape_their_own_responses_only(config):
    modes = {
        "brief": ModeConfig("a", 8, 1.0, length_penalty=0.5),
        "long": ModeConfig("b", 8, 1.0, form="a{3}"),
    }
    judged, metrics = scored(config, lambda sample: 1.0, modes)
    # brief: prompts 0 and 2 with lengths 1, 2 and 5, 6; long: only 'aaa', of lengths 3, 4 and 7, 8
    expected = [[1 - 0.5 / 8, 1 - 1 / 8], [1, 0], [1 - 2.5 / 8, 1 - 3 / 8], [0, 0]]
    np.testing.assert_allclose(judged.reward, expected, rtol=1e-6)
    assert metrics["mode/brief/length_mean"] == np.mean([1, 2, 5, 6])
    assert metrics["mode/long/length_mean"] == np.mean([3, 4, 7, 8])
    assert metrics["mode/long/solved"] == 1.0


def test_rows_say_what_the_model_drew_and_which_samples_left_the_loss(config):
    """Whatever becomes of a sample, its mask tells its turns from what came back."""
    mask = [1, 1, 0, 0, 1]
    samples = [
        Sample(
            prompt="ab>",
            tokens=config.tokenizer.encode("ab>abaab"),
            response_length=5,
            loss_mask=mask,
            rollout_log_probs=[-0.5, -0.25, 0.0, 0.0, -1.0],
        )
        for _ in range(4)
    ]
    samples[1].remove_sample = True
    samples[2].metadata = {"mode": "brief", "tools": [{"name": "f"}], "metrics": {"tools/ok": 2.0}}
    samples[3].train_metadata = {"components": {"solved": 1.0}}
    groups = rollout(3, [[0, 1], [1, 0]], failed=((1, 1),))
    groups = groups.replace(metadata=(samples[:2], samples[2:]))
    rows = list(rollout_rows(groups, 7, config.tokenizer))
    assert [row["mask"] for row in rows] == [mask] * 4
    assert ["".join(row["response_tokens"]) for row in rows] == ["abaab"] * 4
    assert [row["status"] for row in rows] == ["completed"] * 3 + ["failed"]
    assert [row.get("in_loss") for row in rows] == [None, False, None, False]
    optional = {"mode", "tools", "metrics", "components", "error"}
    assert [optional & row.keys() for row in rows] == [
        set(), set(), {"mode", "tools", "metrics"}, {"components"},
    ]  # fmt: skip


def test_each_ending_counts_as_its_rule_says(config):
    """Truncated: fixed reward, kept. Turn limit: in the mean only. Time limit: left out."""
    rules = {
        "truncated": StatusRule(reward=-1.0),
        "turn_limit": StatusRule(counts="mean"),
        "failed": StatusRule(reward=0.25),
    }
    config = replace(config, episodes=EpisodeConfig(statuses=rules))
    groups = rollout(3, [[0, 0, 0, 0], [0, 0, 0, 0]]).replace(
        metadata=(Example("a>", label="a"),) * 2,
        status=np.asarray(
            [
                [Status.COMPLETED, Status.TRUNCATED, Status.TURN_LIMIT, Status.TIME_LIMIT],
                [Status.COMPLETED] * 4,
            ]
        ),
    )

    def judge(sample):
        if sample.index == 7:
            raise KeyError("no reward")
        return {0: 1.0, 2: 4.0, 3: 9.0}.get(sample.index, 0.5)

    judged, _ = reward_rollout(groups, judge, config)
    assert judged.reward.tolist() == [[1, -1, 4, 9], [0.5, 0.5, 0.5, 0.25]]
    assert np.asarray(judged.mask).sum(axis=-1).tolist() == [[2, 2, 0, 0], [2, 2, 2, 2]]
    advantages = with_advantages(judged, replace(config, advantage="group_centred"))
    kept = np.asarray([1, -1, 4])
    np.testing.assert_allclose(advantages.advantages[0, :3], kept - kept.mean(), rtol=1e-6)
    assert advantages.advantages[0, 3] == 0
    assert informative_groups(judged, config.episodes).tolist() == [True, True]


def test_a_reward_sees_what_an_episodes_environment_gave(config):
    example = Example("a>", label="a", metadata={"own": 1})
    episodes = [
        Episode(example, reward=0.5, answer="b", turns=3, metrics={"tools/calls": 2.0}),
        Episode(example, reward=1.5),
    ]
    groups = rollout(3, [[0, 0]]).replace(metadata=(episodes,))
    seen = []

    def judge(sample):
        seen.append((sample.index, sample.reward, sample.metadata))
        return sample.reward + 1

    judged, _ = reward_rollout(groups, judge, config)
    assert judged.reward.tolist() == [[1.5, 2.5]]
    first, second = sorted(seen, key=lambda one: one[0])
    assert first[1:] == (
        0.5,
        {"own": 1, "answer": "b", "turns": 3, "metrics": {"tools/calls": 2.0}, "tools": None},
    )
    assert second[1] == 1.5 and second[2]["answer"] is None


def test_rewards_that_grow_with_length_within_groups_are_measured(config):
    """Responses of 1 and 2, 3 and 4 … letters: the reward is 1 for the longer of each group."""
    _, longer = scored(config, lambda sample: float(sample.index % 2))
    _, shorter = scored(config, lambda sample: float(sample.index % 2 == 0))
    assert longer["reward/length_correlation"] == pytest.approx(1)
    assert shorter["reward/length_correlation"] == pytest.approx(-1)


def test_every_part_of_a_mixture_is_logged(config):
    """Responses of 1 to 8 letters 'a': solved each, and less half of what repeats."""
    parts = (
        WeightedReward("oracles.copy_letter:score", name="copied"),
        WeightedReward("rewards.letters_judge:long", 0.5, {"beyond": 4}),
    )
    config = replace(config, reward=parts)
    judged, metrics = scored(config, reward_function(config.reward, slime.arguments(config)))
    assert judged.reward.tolist() == [[1, 1], [1, 1], [0.5, 0.5], [0.5, 0.5]]
    assert metrics["reward/copied"] == 1 and metrics["reward/solved"] == 1
    assert metrics["reward/rewards.letters_judge.long"] == -0.5
    with pytest.raises(ValueError, match="for a single reward"):
        replace(config, group_reward=True)
