"""What is carried over steps: which groups train, how old they may get, how they are saved."""

import json

import numpy as np
import pytest

from mmrl.data import Example, Sample, Status
from mmrl.rollout import Rollout
from mmrl.sharding import MeshConfig
from mmrl.training.off_policy import (
    Carry,
    OffPolicyConfig,
    ages,
    is_fresh,
    padded,
    restored,
    select,
    staleness_metrics,
)


def groups(first: int, staleness: list[int], length: int = 3) -> Rollout:
    """Groups of two whose prompts hold the tokens `first`, `first` + 1, …, all of one age each."""
    count = len(staleness)
    shape = (count, 2, length)
    return Rollout(
        prompt_tokens=first + np.arange(count)[:, None],
        prompt_lengths=np.ones(count, np.int32),
        tokens=np.full(shape, 7, np.int32),
        lengths=np.full((count, 2), length - 1, np.int32),
        mask=np.ones(shape, np.float32) * (np.arange(length) < length - 1),
        behaviour_logprobs=-np.random.default_rng(first).random(shape).astype(np.float32),
        support=None,
        status=np.full((count, 2), int(Status.COMPLETED), np.int32),
        reward=np.tile([0.0, 1.0], (count, 1)).astype(np.float32),
        advantages=np.zeros((count, 2), np.float32),
        staleness=np.broadcast_to(np.asarray(staleness)[:, None, None], shape).astype(np.int32),
        metadata=tuple([Sample(metadata={"place": [0, first + i]})] * 2 for i in range(count)),
    )


def names(rollout: Rollout | None) -> list[int]:
    return [] if rollout is None else rollout.prompt_tokens[:, 0].tolist()


def test_the_earlier_of_the_chosen_train_the_freshest_first_and_the_rest_waits():
    parts = [groups(10, [2, 1]), groups(20, [0, 0, 0])]
    batch, left = select(parts, [np.ones(2, bool), np.asarray([True, False, True])], 3)
    assert names(batch) == [20, 11, 10] and names(left) == [22]
    batch, left = select(parts, [np.zeros(2, bool), np.asarray([False, True, False])], 3)
    assert set(names(batch)) == {21, 10, 11} and left is None


def test_kept_groups_age_and_leave_when_they_are_too_old():
    carry = Carry(kept=groups(10, [0, 2, 1]), unfinished=groups(20, [5]))
    assert carry.age(1, most=2, length=4) == 1
    assert names(carry.kept) == [10, 12] and ages(carry.kept).tolist() == [1, 2]
    assert ages(carry.unfinished).tolist() == [6]  # never dropped: drawn to their end instead
    assert carry.kept.tokens.shape == (2, 2, 4) and (carry.kept.mask[..., 3] == 0).all()
    assert carry.age(1, most=2, length=4) == 0  # the same weights: nothing is older
    assert carry.age(2, most=2, length=4) == 1 and carry.age(3, most=2, length=4) == 1
    assert carry.kept is None and carry.age(4, most=2, length=4) == 0


def test_a_rollout_drawn_ahead_is_as_old_as_the_weights_that_drew_it():
    carry = Carry(version=4, ahead=(groups(0, [0, 1]), {}))
    rollout, _ = carry.take_ahead(5, length=3)
    assert ages(rollout).tolist() == [1, 2]
    assert carry.take_ahead(5, length=3) is None


def test_the_age_of_padding_counts_for_nothing():
    rollout = groups(0, [1, 0])
    rollout.staleness[..., -1] = 99
    assert ages(rollout).tolist() == [1, 0]
    assert staleness_metrics(rollout) == {
        "rollout/staleness_mean": 0.5,
        "rollout/staleness_max": 1,
    }


@pytest.mark.parametrize(("staleness", "fresh"), [([0, 1], True), ([1, 0], False)])
def test_only_fresh_tokens_of_the_first_update_compare_sampler_and_trainer(staleness, fresh):
    assert is_fresh(groups(0, staleness), updates=2) is fresh
    assert is_fresh(groups(0, staleness), updates=1)


def test_what_is_carried_comes_back_from_disk_with_the_places_of_its_prompts():
    ahead = groups(30, [0]).replace(support=np.full((1, 2, 3, 4), -1, np.int32))
    unfinished = groups(20, [1]).replace(metadata=(Example("p", metadata={"place": [0, 20]}),))
    carry = Carry(7, groups(10, [0, 2]), unfinished, (ahead, {"reward/mean": 0.1 + 0.2}))
    arrays, host = carry.saved()
    host = json.loads(json.dumps(host))
    assert host == {
        "version": 7,
        "kept": [[0, 10], [0, 11]],
        "unfinished": [[0, 20]],
        "ahead": [[0, 30]],
        "metrics": {"reward/mean": 0.1 + 0.2},
    }
    for name, before in (("kept", carry.kept), ("unfinished", unfinished), ("ahead", ahead)):
        after = restored(arrays[name], before.metadata)
        for field, value in vars(before).items():
            assert np.array_equal(vars(after)[field], value) or (
                field == "metadata" or value is None and vars(after)[field] is None
            ), field
        assert after.metadata == before.metadata
    assert Carry().saved() == ({}, {"version": 0})


def test_room_for_longer_responses_changes_no_token():
    rollout = groups(0, [1])
    longer = padded(rollout, 5)
    assert longer.tokens.shape[2] == 5 and padded(longer, 3) is longer
    assert np.array_equal(longer.behaviour_logprobs[..., :3], rollout.behaviour_logprobs)
    assert (longer.tokens[..., 3:] == 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(overlap=True),
        dict(partial_tokens=4),
        dict(overlap=True, partial_tokens=4, max_staleness=1),
        dict(partial_tokens=0, max_staleness=1),
        dict(rollout_mesh=MeshConfig(data=2)),
        dict(rollout_mesh=MeshConfig(), overlap=True, max_staleness=1),
    ],
)
def test_a_bound_that_cannot_be_held_is_refused(settings):
    with pytest.raises(ValueError, match="off_policy"):
        OffPolicyConfig(**settings)
