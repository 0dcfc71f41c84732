"""Advantages against loops over groups in float64."""

import jax
import numpy as np
import pytest

from mmrl.rl import advantages

REWARDS = np.array([[1.0, 0.0, 0.5, 0.0], [2.0, 2.0, 2.0, 2.0], [0.1, 0.4, -3.0, 7.0]])
VALID = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]], bool)


def group_loop(rewards, valid, ddof, eps=1e-6):
    result = np.zeros_like(rewards)
    for p in range(len(rewards)):
        kept = rewards[p][valid[p]]
        if len(kept) < 2 or kept.std() < 1e-6:
            continue
        scale = 1.0 if ddof is None else kept.std(ddof=ddof) + eps
        result[p][valid[p]] = (kept - kept.mean()) / scale
    return result


@pytest.mark.parametrize(("std", "ddof"), [("population", 0), ("sample", 1), (None, None)])
@pytest.mark.parametrize("valid", [None, VALID])
def test_group_relative_equals_a_loop_under_each_std_convention(std, ddof, valid):
    expected = group_loop(REWARDS, np.ones_like(VALID) if valid is None else valid, ddof)
    actual = advantages.group_relative(REWARDS, valid, std=std)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


def test_std_conventions_differ_by_bessel_s_factor():
    population = np.asarray(advantages.group_relative(REWARDS, std="population"))
    sample = np.asarray(advantages.group_relative(REWARDS, std="sample"))
    np.testing.assert_allclose(population[0], sample[0] * np.sqrt(4 / 3), rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1000.1, -3e7])
@pytest.mark.parametrize(
    "function",
    [advantages.group_relative, advantages.leave_one_out, advantages.batch_normalised],
)
def test_equal_rewards_give_exactly_zero_whatever_their_rounding(function, value):
    rewards = np.full((2, 7), value)
    np.testing.assert_array_equal(function(rewards), np.zeros((2, 7)))
    assert not advantages.informative(rewards).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_failed_reward_gets_zero_and_changes_no_other_advantage(bad):
    rewards = REWARDS.copy()
    rewards[~VALID] = bad
    for function in (
        advantages.group_relative,
        advantages.leave_one_out,
        advantages.batch_normalised,
    ):
        actual, expected = function(rewards, VALID), function(REWARDS, VALID)
        np.testing.assert_array_equal(actual, expected)
        assert not np.asarray(actual)[~VALID].any()


def test_a_non_finite_reward_is_invalid_by_itself():
    rewards = REWARDS.copy()
    rewards[0, 2] = np.nan
    valid = np.isfinite(rewards)
    np.testing.assert_allclose(
        advantages.group_relative(rewards), group_loop(np.nan_to_num(rewards), valid, 0), atol=2e-6
    )


def test_a_group_without_a_second_valid_sample_gets_zero():
    one = np.array([[5.0]])
    assert advantages.group_relative(one) == 0
    assert advantages.leave_one_out(one) == 0
    assert not advantages.informative(one).any()
    valid = np.array([[True, False, False], [False, False, False]])
    rewards = np.arange(6.0).reshape(2, 3)
    for std in ("population", "sample", None):
        assert not advantages.group_relative(rewards, valid, std=std).any()
    assert not advantages.leave_one_out(rewards, valid).any()


def test_leave_one_out_equals_a_loop_over_the_others():
    expected = np.zeros_like(REWARDS)
    for p, i in np.argwhere(VALID):
        others = [REWARDS[p, j] for j in range(4) if j != i and VALID[p, j]]
        expected[p, i] = REWARDS[p, i] - np.mean(others)
    np.testing.assert_allclose(advantages.leave_one_out(REWARDS, VALID), expected, atol=1e-6)


@pytest.mark.parametrize("baseline", ["batch", "group"])
@pytest.mark.parametrize(("std", "ddof"), [("population", 0), ("sample", 1), (None, None)])
def test_batch_normalised_equals_a_loop(baseline, std, ddof):
    centred = np.zeros_like(REWARDS)
    for p in range(len(REWARDS)):
        kept = VALID if baseline == "batch" else VALID & (np.arange(3) == p)[:, None]
        centred[p] = REWARDS[p] - REWARDS[kept].mean()
    scale = 1.0 if std is None else centred[VALID].std(ddof=ddof) + 1e-6
    expected = np.where(VALID, centred / scale, 0)
    actual = advantages.batch_normalised(REWARDS, VALID, baseline=baseline, std=std)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_batch_normalised_works_with_one_sample_a_prompt():
    actual = np.asarray(advantages.batch_normalised(np.array([[1.0], [3.0]])))
    np.testing.assert_allclose(actual, [[-1.0], [1.0]], rtol=1e-5)


def test_informative_looks_only_at_valid_rewards():
    np.testing.assert_array_equal(advantages.informative(REWARDS), [True, False, True])
    valid = np.array([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]], bool)
    np.testing.assert_array_equal(advantages.informative(REWARDS, valid), [False, False, True])


def test_overlong_shaping_equals_dapo_s_piecewise_formula():
    longest, cache = 20480, 4096

    def published(length):
        if length <= longest - cache:
            return 0.0
        if length <= longest:
            return ((longest - cache) - length) / cache
        return -1.0

    lengths = np.array([0, 1, 16383, 16384, 16385, 18432, 20479, 20480, 20481, 10**6])
    actual = advantages.overlong_shaping(lengths, max_length=longest, buffer=cache)
    np.testing.assert_allclose(actual, [published(n) for n in lengths], atol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'population', 'sample' or None, not 'unbiased'"):
        advantages.group_relative(REWARDS, std="unbiased")
    with pytest.raises(ValueError, match="baseline must be"):
        advantages.batch_normalised(REWARDS, baseline="none")
    with pytest.raises(ValueError, match="buffer must be in"):
        advantages.overlong_shaping(np.array([3]), max_length=10, buffer=11)


def test_advantages_compile():
    jitted = jax.jit(advantages.group_relative, static_argnames="std")
    np.testing.assert_allclose(
        jitted(REWARDS, VALID), advantages.group_relative(REWARDS, VALID), rtol=1e-6
    )


def test_brevity_costs_solved_responses_their_share_and_wrong_ones_nothing():
    rewards = np.array([[1.0, 1.0, 0.0, -1.0], [2.0, 0.5, 1.0, 1.0]])
    lengths = np.array([[4, 8, 1, 8], [10, 20, 0, 20]])
    limits, weights = np.array([[8], [20]]), np.array([[0.5], [0.2]])
    expected = np.array([[0.75, 0.5, 0.0, -1.0], [1.8, 0.4, 1.0, 0.8]])
    found = advantages.brevity_shaping(rewards, lengths, max_lengths=limits, weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
