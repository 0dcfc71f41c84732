import numpy as np
import pytest
import scipy.stats

from mmrl.rewards.length_bias import length_correlation, rewards_length


def test_the_correlation_of_one_group_is_pearsons():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 500, 20)
    rewards = 0.01 * lengths + rng.normal(0, 2, 20)
    expected = scipy.stats.pearsonr(rewards, lengths).statistic
    assert length_correlation(rewards[None], lengths[None]) == pytest.approx(expected)


def test_differences_between_prompts_do_not_count():
    """Hard prompts have long and bad responses; within each, longer ones are better."""
    lengths = np.array([[10, 20, 30], [110, 120, 130], [210, 220, 230]])
    rewards = np.array([[0.8, 0.9, 1.0], [0.4, 0.5, 0.6], [0.0, 0.1, 0.2]])
    assert scipy.stats.pearsonr(rewards.ravel(), lengths.ravel()).statistic < -0.9
    assert length_correlation(rewards, lengths) == pytest.approx(1)


@pytest.mark.parametrize("rewards", [np.ones((2, 3)), np.array([[1.0] * 3, [0.0] * 3])])
def test_rewards_without_spread_in_groups_say_nothing(rewards):
    assert length_correlation(rewards, np.array([[1, 2, 3]] * 2)) == 0


def history(reward=0.0, length=0.0, solved=0.0, steps=60, noise=0.05, seed=0):
    """Steps whose metrics rise by so many of their noise's deviations in all."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, steps)
    return [
        {
            "reward/mean": noise * (reward * t + rng.normal()),
            "response/length_mean": 100 + 10 * (length * t + rng.normal()),
            "reward/solved": 0.4 + noise * (solved * t + rng.normal()),
        }
        for t in time
    ]


def test_reward_that_rises_with_length_and_without_success_is_told():
    assert all(rewards_length(history(8, 8, 0, seed=seed)) for seed in range(5))
    assert all(rewards_length(history(8, 8, -8, seed=seed)) for seed in range(5))


@pytest.mark.parametrize("rises", [(8, 8, 8), (8, 0, 0), (0, 8, 0), (8, -8, 0), (-8, 8, 0)])
def test_success_or_answers_that_stay_short_are_no_bias(rises):
    """A metric that does not rise seems to in one of 40 histories, at two standard errors."""
    assert sum(rewards_length(history(*rises, seed=seed)) for seed in range(40)) <= 3


def test_noise_alone_is_seldom_taken_for_bias():
    assert sum(rewards_length(history(seed=seed)) for seed in range(200)) <= 2


def test_only_the_last_steps_count_and_few_of_them_say_nothing():
    biased = history(8, 8, 0)
    assert rewards_length(biased + [{"eval/reward": 1.0}] * 100)
    assert not rewards_length(biased + history(steps=50, seed=3))
    assert not rewards_length(biased[-20:])
    assert not rewards_length([])
    constant = [{"reward/mean": 1.0, "response/length_mean": 5.0, "reward/solved": 0.5}] * 60
    assert not rewards_length(constant)


def test_the_judges_own_metric_may_be_named():
    rows = [{"reward/judge.grade": row.pop("reward/mean"), **row} for row in history(8, 8, 0)]
    assert rewards_length(rows, reward="reward/judge.grade")
    assert not rewards_length(rows)
