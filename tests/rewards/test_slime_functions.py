"""Functions written for slime's Sample run unchanged, and mmrl's own beside them."""

import pytest

from mmrl.data import Sample, Status
from mmrl.rewards import slime_functions
from mmrl.rewards.runner import score
from mmrl.rewards.slime_functions import (
    Arguments,
    find_filter,
    reward_function,
    score_groups,
    takes_arguments,
)

STYLE = "rewards.slime_style"
ARGS = Arguments(n_samples_per_prompt=4, reward_key=None)


def sample(response="a", label="a", **fields) -> Sample:
    return Sample(response=response, label=label, **({"status": Status.COMPLETED} | fields))


def values(path, samples, key=None):
    return [r.value for r in score(samples, reward_function(f"{STYLE}.{path}", ARGS, key))]


def test_a_reward_reads_slimes_arguments_and_statuses():
    samples = [sample(), sample("b"), sample(status=Status.TRUNCATED)]
    assert values("reward", samples) == [4.0, 0.0, -1.0]


def test_the_reward_key_names_the_entry_that_counts_and_other_text_is_left_out():
    function = reward_function(f"{STYLE}:detailed", ARGS, "acc")
    [result] = score([sample()], function)
    assert result.error is None
    assert result.value == 1.0
    assert result.components == {"acc": 1.0, "score": 9.0, "reward": 1.0}


def test_a_missing_reward_key_fails_the_sample():
    [result] = score([sample()], reward_function(f"{STYLE}:detailed", ARGS, "accuracy"))
    assert "accuracy" in result.error


def test_mmrls_own_rewards_get_no_arguments():
    assert values("plain", [sample()]) == [0.25]
    assert not takes_arguments(lambda sample, ngram=4: 0.0)
    assert takes_arguments(lambda args, sample, **kwargs: 0.0)


def test_an_argument_that_mmrl_has_not_is_named_in_the_samples_error():
    [result] = score([sample()], reward_function(f"{STYLE}:unknown_argument", ARGS))
    assert "args.sglang_router_port" in result.error
    assert "n_samples_per_prompt" in result.error


def test_a_group_is_judged_together_and_in_order():
    samples = [sample(response_length=n, group_index=g) for g in range(2) for n in (5, 2, 9)]
    found = score_groups(samples, reward_function(f"{STYLE}:ranks", ARGS), group_size=3)
    assert [r.value for r in found] == [1.0, 0.0, 2.0] * 2


def test_a_group_with_too_few_rewards_fails_alone():
    samples = [sample(group_index=g) for g in range(3) for _ in range(2)]
    found = score_groups(samples, reward_function(f"{STYLE}:too_few", ARGS), group_size=2)
    assert [r.error is None for r in found] == [True, True, False, False, True, True]
    assert [r.value for r in found] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


def test_filters_may_return_slimes_output_or_a_bool():
    some = find_filter(f"{STYLE}.keep_some_solved", ARGS)
    assert some([sample(reward=1.0), sample(reward=0.0)]) is True
    assert some([sample(reward=1.0), sample(reward=1.0)]) is False
    even = find_filter(f"{STYLE}.keep_even", ARGS)
    assert [even([sample(group_index=g)]) for g in range(3)] == [True, False, True]


def test_slimes_own_filter_keeps_groups_whose_rewards_differ():
    path = "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
    keep = find_filter(path, ARGS)
    assert keep([sample(reward=0.0), sample(reward=1.0)])
    assert not keep([sample(reward=0.5), sample(reward=0.5)])
    failed = sample(reward=1.0, status=Status.FAILED)
    assert not keep([sample(reward=0.0), sample(reward=0.0), failed])


def test_nothing_else_of_slime_is_pretended():
    slime_functions.provide_slime()
    with pytest.raises(ImportError):
        import slime.utils.http_utils  # noqa: F401
    with pytest.raises(ImportError):
        from slime.utils.types import ParamInfo  # noqa: F401


def test_a_sample_has_the_values_of_slimes():
    one = Sample(loss_mask=[1, 0, 1], response_length=3, reward={"acc": 1.0}, status=Status.FAILED)
    assert one.effective_response_length == 2
    assert one.get_reward_value(Arguments(reward_key="acc")) == 1.0
    assert one.status is Sample.Status.FAILED
    assert one.to_dict()["status"] == "failed"
    assert Sample.Status("truncated") is Status.TRUNCATED
