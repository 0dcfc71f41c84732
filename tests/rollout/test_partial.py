"""Partial responses: by the same weights they are those of one go, by others their own."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.data.records import Status
from mmrl.models import Decoder
from mmrl.rollout import SamplingConfig, generate, score
from mmrl.rollout.partial import continued, pending
from mmrl.rollout.sampling import RepetitionStop
from mmrl.training.off_policy import aged, on_host, split_finished

CONFIG = dataclasses.replace(
    HYBRID, vocab_size=29, num_layers=2, layer_pattern=("lightning", "softmax"), num_experts=0
)
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10], [11, 12, 13, 14, 15, 16, 17]]
TOKENS, PIECE = 12, 5
SAMPLING = SamplingConfig(group_size=2, max_new_tokens=TOKENS, stop_ids=(1, 2))
STOP = RepetitionStop(tokens=7, probability=0.05)


@pytest.fixture(scope="module")
def models() -> list[Decoder]:
    return [Decoder(CONFIG, nnx.Rngs(seed)) for seed in (0, 1)]


def first_piece(model: Decoder, sampling: SamplingConfig):
    cut = dataclasses.replace(sampling, max_new_tokens=PIECE)
    drawn = generate(model, PROMPTS, cut, jax.random.key(5))
    metadata = tuple(f"prompt {p}" for p in range(len(PROMPTS)))
    return pending(on_host(drawn.replace(metadata=metadata), TOKENS), TOKENS)


def test_pieces_by_the_same_weights_are_the_response_of_one_go(models):
    """Greedy, so that random numbers play no part; a streak of certain tokens spans the pieces."""
    sampling = dataclasses.replace(SAMPLING, temperature=0.0, repetition_stop=STOP)
    whole = generate(models[0], PROMPTS, sampling, jax.random.key(5))
    pieces = first_piece(models[0], sampling)
    rounds = 0
    while (pieces.status == int(Status.PENDING)).any():
        pieces = continued(models[0], pieces, sampling, jax.random.key(0), tokens=PIECE)
        rounds += 1
    assert 0 < rounds <= 2
    for name in ("tokens", "lengths", "status", "mask"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name)), name
    np.testing.assert_allclose(pieces.behaviour_logprobs, whole.behaviour_logprobs, atol=1e-5)
    assert (np.asarray(whole.status) == Status.REPETITION).any()


def test_each_token_keeps_the_log_probability_and_the_age_of_its_own_weights(models):
    old, new = models
    start = aged(first_piece(old, SAMPLING), 1)
    rollout = continued(new, start, SAMPLING, jax.random.key(1))
    assert not (rollout.status == int(Status.PENDING)).any()
    went_on = start.status == int(Status.PENDING)
    assert went_on.any() and (rollout.lengths[went_on] > PIECE).all()
    assert np.array_equal(rollout.lengths[~went_on], start.lengths[~went_on])
    drawn = rollout.mask > 0
    by_old = drawn & (np.arange(TOKENS) < PIECE)
    by_new = drawn & ~by_old
    assert (rollout.staleness[by_old] == 1).all() and (rollout.staleness[by_new] == 0).all()
    for model, tokens in ((old, by_old), (new, by_new)):
        scored = jax.jit(lambda r, model=model: score(model, r, 1.0)["logprobs"])(rollout.arrays())
        difference = np.abs(scored - rollout.behaviour_logprobs)
        assert difference[tokens].max() < 1e-4
        assert difference[drawn & ~tokens].max() > 1e-2


def test_groups_with_an_unfinished_response_wait_whole(models):
    start = first_piece(models[0], SAMPLING)
    finished, unfinished = split_finished(start)
    waits = (start.status == int(Status.PENDING)).any(axis=1)
    assert waits.sum() > 0
    found = () if finished is None else finished.metadata
    assert unfinished.metadata == tuple(f"prompt {p}" for p in np.flatnonzero(waits))
    assert found == tuple(f"prompt {p}" for p in np.flatnonzero(~waits))
