"""Dynamic sampling: which groups a step keeps of several rollouts."""

import jax.numpy as jnp
import numpy as np

from mmrl.data import Status
from mmrl.rollout import Rollout
from mmrl.training.rollouts import informative_groups, keep_informative


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
