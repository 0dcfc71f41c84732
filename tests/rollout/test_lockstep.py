"""Continuous batching in lockstep: the same bits whatever time what lies between takes."""

import asyncio
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.models import Decoder
from mmrl.rollout import SamplingConfig, generate
from mmrl.rollout.lockstep import LockstepBatch

CONFIG = dataclasses.replace(
    HYBRID, vocab_size=29, num_layers=2, layer_pattern=("lightning", "softmax"), num_experts=0
)
KEY = jax.random.key(3)
SAMPLING = SamplingConfig(group_size=2, max_new_tokens=12, stop_ids=(5, 6))
PROMPTS = [[3, 4, 5, 6, 7], [8], list(range(3, 23))]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


def conversations(model, delays, turns=3, gives_up=None):
    """Three rows for six sessions of several turns; each waits its delay between two."""
    batch = LockstepBatch(model, rows=3, context=128, steps=4)
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, p), g) for p in range(3) for g in range(2)]
    sessions = [batch.open(key, SAMPLING) for key in keys]

    async def talk(i):
        session, heard = sessions[i], []
        try:
            await session.begin()
            new = PROMPTS[i // 2]
            for _ in range(turns):
                await asyncio.sleep(delays[i])
                turn = session.generate(new)
                if i == gives_up:
                    return await asyncio.wait_for(turn, 1e-4)
                heard.append(await turn)
                new = [9, 10, i]
        except TimeoutError:
            return "gave up"
        finally:
            session.close()
        return [(turn.tokens, turn.logprobs) for turn in heard]

    async def everything():
        found = await asyncio.gather(*map(talk, range(6)))
        await batch.finished()
        return found

    return asyncio.run(asyncio.wait_for(everything(), 200)), batch


def test_the_first_turns_are_those_of_generate(model):
    rollout = generate(model, PROMPTS, SAMPLING, KEY)
    found, _ = conversations(model, [0.0] * 6, turns=1)
    for i, [(tokens, logprobs)] in enumerate(found):
        p, g = divmod(i, 2)
        length = int(rollout.lengths[p, g])
        assert tokens == rollout.tokens[p, g, :length].tolist()
        expected = np.asarray(rollout.behaviour_logprobs)[p, g, :length]
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_delays_change_no_bit(model):
    at_once, batch = conversations(model, [0.0] * 6)
    late, other = conversations(model, [0.02, 0.0, 0.01, 0.03, 0.0, 0.015])
    assert at_once == late
    assert 0 < batch.occupancy == other.occupancy < 1


def test_a_session_that_gives_up_holds_nobody_up(model):
    found, batch = conversations(model, [0.0] * 6, gives_up=1)
    assert found[1] == "gave up"
    assert all(len(found[i]) == 3 for i in (0, 2, 3, 4, 5))
    assert batch.load == (0, 0)
