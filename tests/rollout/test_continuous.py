"""Continuous batching against `generate`, and against the model read without a cache."""

import asyncio
import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.data import Status
from mmrl.errors import UserError
from mmrl.models import Decoder
from mmrl.rollout import SamplingConfig, generate
from mmrl.rollout.continuous import ContinuousBatch
from mmrl.rollout.fixed_sizes import FixedSizes
from mmrl.rollout.sampling import RepetitionStop

CONFIG = dataclasses.replace(
    HYBRID, vocab_size=29, num_layers=2, layer_pattern=("lightning", "softmax"), num_experts=0
)
CONTEXT = 256
PROMPTS = [[3, 4, 5, 6, 7], [8], list(range(3, 23)), [9, 10] * 12, [11, 3]]
PLAIN = SamplingConfig(group_size=2, max_new_tokens=12, stop_ids=(5, 6))
SETTINGS = {
    "greedy": dataclasses.replace(PLAIN, temperature=0.0),
    "plain": PLAIN,
    "top-k": dataclasses.replace(PLAIN, top_k=4),
    "top-k and top-p": dataclasses.replace(PLAIN, temperature=1.2, top_k=7, top_p=0.9),
    "top-p": dataclasses.replace(PLAIN, temperature=0.7, top_p=0.8),
    "repetition": dataclasses.replace(PLAIN, repetition_stop=RepetitionStop(3, 0.04)),
}
ENDINGS = {
    Status.COMPLETED: "stop",
    Status.TRUNCATED: "length",
    Status.REPETITION: "repetition",
}
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


@functools.partial(jax.jit, static_argnames="graphdef")
def _logprobs(graphdef, params, tokens):
    return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens)[0])


def logprobs_without_cache(model: Decoder, tokens: list[int]) -> np.ndarray:
    """[T, V], what the model says after each of the tokens."""
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_logprobs(*nnx.split(model), padded))[0, : len(tokens)]


def sample_key(prompt: int, sample: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(KEY, prompt), sample)


async def respond(batch: ContinuousBatch, tokens, sampling, key=KEY, **arguments):
    session = batch.open(key, sampling)
    try:
        return await session.generate(tokens, **arguments)
    finally:
        session.close()


@pytest.mark.parametrize("name", SETTINGS)
def test_sequences_that_share_few_rows_are_those_of_generate(name, model):
    sampling = SETTINGS[name]
    expected = generate(model, PROMPTS, sampling, KEY)
    batch = ContinuousBatch(model, rows=3, context=CONTEXT, steps=5)

    async def all_of_them():
        return await asyncio.gather(
            *(
                respond(batch, prompt, sampling, sample_key(p, g))
                for p, prompt in enumerate(PROMPTS)
                for g in range(sampling.group_size)
            )
        )

    for i, turn in enumerate(asyncio.run(all_of_them())):
        p, g = divmod(i, sampling.group_size)
        length = int(expected.lengths[p, g])
        assert turn.tokens == np.asarray(expected.tokens)[p, g, :length].tolist()
        np.testing.assert_allclose(
            turn.logprobs, expected.behaviour_logprobs[p, g, :length], atol=2e-5
        )
        assert turn.ending == ENDINGS[Status(int(expected.status[p, g]))]
        if sampling.truncates:
            for found, wanted in zip(turn.support, expected.support[p, g], strict=False):
                assert set(found[found >= 0]) == set(wanted[wanted >= 0].tolist())
    assert 0.4 < batch.occupancy <= 1
    repeated = np.asarray(expected.status) == Status.REPETITION
    assert repeated.any() == (sampling.repetition_stop is not None)


def test_rows_with_settings_of_their_own_draw_what_they_draw_alone(model):
    batch = ContinuousBatch(model, rows=len(SETTINGS), context=CONTEXT, steps=5)

    async def together():
        return await asyncio.gather(*(respond(batch, [3, 4], s) for s in SETTINGS.values()))

    alone = [asyncio.run(respond(batch, [3, 4], s)).tokens for s in SETTINGS.values()]
    assert [turn.tokens for turn in asyncio.run(together())] == alone
    assert len(set(map(tuple, alone))) > 1


def test_fifty_turns_keep_every_token_and_its_logprob(model):
    turns, words = 50, np.random.default_rng(0)
    sampling = SamplingConfig(group_size=1, max_new_tokens=3, stop_ids=(5, 6))
    batch = ContinuousBatch(model, rows=2, context=CONTEXT, steps=4)
    given = [words.integers(3, 29, words.integers(1, 3)).tolist() for _ in range(turns)]

    async def episode():
        session, history, drawn = batch.open(KEY, sampling), [], []
        for tokens in given:
            turn = await session.generate(tokens)
            history += tokens
            drawn += zip(range(len(history), CONTEXT), turn.logprobs, strict=False)
            history += turn.tokens
        return session, history, drawn

    async def beside_others():
        episode_, *_ = await asyncio.gather(
            episode(), *(respond(batch, [7] * n, sampling) for n in range(1, 30))
        )
        return episode_

    session, history, drawn = asyncio.run(beside_others())
    assert session.tokens == history and len(drawn) >= turns
    expected = logprobs_without_cache(model, history)
    for place, logprob in drawn:
        assert logprob == pytest.approx(expected[place - 1, history[place]], abs=5e-5)


def test_a_session_that_waits_for_its_tool_holds_up_nobody(model):
    sampling = dataclasses.replace(PLAIN, group_size=1, stop_ids=())
    batch = ContinuousBatch(model, rows=2, context=CONTEXT)
    released = asyncio.Event()

    async def waits():
        session = batch.open(KEY, sampling)
        first = await session.generate([3])
        await released.wait()
        second = await session.generate([4])
        return first.tokens, second.tokens

    async def run():
        task = asyncio.create_task(waits())
        others = [await respond(batch, [n], sampling) for n in range(3, 7)]
        released.set()
        return others, await task

    others, (first, second) = asyncio.run(asyncio.wait_for(run(), 120))
    assert [len(turn.tokens) for turn in others] == [12] * 4
    expected = logprobs_without_cache(model, [3, *first, 4, *second])
    assert len(second) == 12 and np.isfinite(expected).all()


def test_the_best_tokens_are_those_of_the_untruncated_model(model):
    sampling = SETTINGS["top-k"]
    turn = asyncio.run(respond(ContinuousBatch(model, 1, CONTEXT), [3, 4], sampling, best=3))
    expected = logprobs_without_cache(model, [3, 4, *turn.tokens])[1:-1]
    for logprobs, token, own, best in zip(
        expected, turn.tokens, turn.model_logprobs, turn.best, strict=True
    ):
        assert own == pytest.approx(logprobs[token], abs=2e-5)
        assert [id_ for id_, _ in best] == np.argsort(-logprobs)[:3].tolist()
        np.testing.assert_allclose([x for _, x in best], np.sort(logprobs)[::-1][:3], atol=2e-5)


def test_each_ending_has_its_name_and_the_row_serves_again(model):
    batch = ContinuousBatch(model, rows=1, context=20, steps=4)
    endless = dataclasses.replace(PLAIN, group_size=1, max_new_tokens=100, stop_ids=())

    async def run():
        full = await respond(batch, [3] * 10, endless)
        cut = await respond(batch, [3], endless, on_tokens=lambda turn, n: len(turn.tokens) < 6)
        task = asyncio.create_task(respond(batch, [3], endless))
        waiting = asyncio.create_task(respond(batch, [4], endless))
        await asyncio.sleep(0)
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        short = await respond(batch, [3, 4], endless, max_new_tokens=2)
        return full, cut, short, task.cancelled(), waiting.cancelled()

    full, cut, short, *cancelled = asyncio.run(asyncio.wait_for(run(), 120))
    assert (full.ending, len(full.tokens)) == ("context", 10)
    assert cut.ending == "cancelled" and 6 <= len(cut.tokens) <= 9
    assert (short.ending, len(short.tokens)) == ("length", 2)
    assert cancelled == [True, True]


@pytest.mark.parametrize("tokens", [[], [3] * 20])
def test_a_sequence_without_room_for_a_response_is_refused(tokens, model):
    with pytest.raises(UserError, match="the context holds 20"):
        asyncio.run(respond(ContinuousBatch(model, 1, 20), tokens, PLAIN))


def test_a_failure_of_the_device_reaches_everybody(model, monkeypatch):
    batch = ContinuousBatch(model, rows=1, context=CONTEXT)
    monkeypatch.setattr(batch, "_advance", lambda *_: 1 / 0)

    async def run():
        turns = (respond(batch, [3], PLAIN) for _ in range(3))
        return await asyncio.gather(*turns, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(run(), 60))
    assert [type(error) for error in found] == [ZeroDivisionError] * 3


def test_fixed_sizes_of_programs_change_no_token(model):
    prompts = [[8], list(range(3, 29)) * 3, PROMPTS[0]]  # the second is read in pieces
    pieces = ((1, 4), (2, 16))

    def draw(kind, **arguments):
        batch = kind(model, rows=2, context=CONTEXT, steps=5, **arguments)

        async def together():
            return await asyncio.gather(
                *(respond(batch, prompt, SETTINGS["top-p"], best=2) for prompt in prompts)
            )

        return asyncio.run(together())

    few = draw(FixedSizes, pieces=pieces, support=128, best=4)
    for fixed, free in zip(few, draw(ContinuousBatch), strict=True):
        assert fixed.tokens == free.tokens
        np.testing.assert_allclose(fixed.logprobs, free.logprobs, atol=2e-5)
        assert [[i for i, _ in best] for best in fixed.best] == [
            [i for i, _ in best] for best in free.best
        ]


def test_a_reader_that_fails_fails_alone(model):
    sampling = dataclasses.replace(PLAIN, stop_ids=())
    batch = ContinuousBatch(model, rows=2, context=CONTEXT)

    def fails(turn, count):
        raise ZeroDivisionError

    async def run():
        return await asyncio.gather(
            respond(batch, [3], sampling, on_tokens=fails),
            respond(batch, [4], sampling),
            return_exceptions=True,
        )

    failed, other = asyncio.run(run())
    assert isinstance(failed, ZeroDivisionError)
    assert len(other.tokens) == 12 and batch.failure is None
