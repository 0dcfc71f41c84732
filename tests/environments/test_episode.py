"""Episodes in environments that answer with text: ids, masks, log-probabilities, limits."""

import asyncio
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.data import Example, Status
from mmrl.environments import EpisodeLimits, Observation, Step, episodes_rollout, play
from mmrl.models import Decoder
from mmrl.rollout import SamplingConfig, score
from mmrl.rollout.continuous import ContinuousBatch
from mmrl.text import CharTokenizer

TOKENIZER = CharTokenizer(alphabet="abcdefghijklmnopqrstuvwxyz")
CONFIG = dataclasses.replace(
    HYBRID, vocab_size=29, num_layers=2, layer_pattern=("lightning", "softmax"), num_experts=0
)
SAMPLING = SamplingConfig(group_size=1, max_new_tokens=64, stop_ids=tuple(range(1, 15)))
LIMITS = EpisodeLimits(turns=50, turn_tokens=40, tokens=600, tool_seconds=30, seconds=300)
EXAMPLE = Example("begin")


class Echo:
    """Answers every response with a word, `turns` times; remembers what it saw."""

    def __init__(self, turns=50, delay=0.0, fails_at=None):
        self.turns, self.delay, self.fails_at = turns, delay, fails_at
        self.seen, self.closed = [], 0

    async def reset(self, example):
        return Observation(example.prompt)

    async def step(self, response):
        self.seen.append(response)
        if len(self.seen) == self.fails_at:
            raise KeyError("the world broke")
        await asyncio.sleep(self.delay)
        done = len(self.seen) == self.turns
        return Step("word"[: 1 + len(self.seen) % 4], done, 0.5, {"words": 1.0})

    async def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


def run(model, environments, limits=LIMITS, sampling=SAMPLING, context=1024):
    batch = ContinuousBatch(model, rows=4, context=context, steps=4)

    async def all_of_them():
        return await asyncio.gather(
            *(
                play(batch.open(jax.random.key(i), sampling), world, EXAMPLE, TOKENIZER, limits)
                for i, world in enumerate(environments)
            )
        )

    return asyncio.run(asyncio.wait_for(all_of_them(), 300))


@pytest.mark.parametrize("top_k", [0, 6])
def test_episodes_of_fifty_turns_are_replayed_by_the_trainer_token_by_token(top_k, model):
    sampling = dataclasses.replace(SAMPLING, top_k=top_k)
    worlds = [Echo() for _ in range(6)]
    episodes = run(model, worlds, sampling=sampling)
    sampling = dataclasses.replace(sampling, group_size=3)
    rollout = episodes_rollout([episodes[:3], episodes[3:]], sampling, 8, 1024)
    scored = score(model, jax.tree.map(np.asarray, rollout.arrays()), 1.0)["logprobs"]
    for i, (world, episode) in enumerate(zip(worlds, episodes, strict=True)):
        assert episode.prompt == TOKENIZER.encode("begin")
        spoken, place = [], 0
        for n, response in enumerate(world.seen, start=1):
            drawn = episode.response[place:]
            stop = next(k for k, token in enumerate(drawn) if token in sampling.stop_ids) + 1
            assert TOKENIZER.decode(drawn[:stop]) == response
            given = TOKENIZER.encode("word"[: 1 + n % 4]) if n < len(world.seen) else []
            assert drawn[stop : stop + len(given)] == given
            spoken += [1] * stop + [0] * len(given)
            place += stop + len(given)
        assert episode.mask == spoken and len(spoken) == len(episode.response)
        p, g = divmod(i, 3)
        drawn = np.asarray(episode.mask, bool)
        own = np.asarray(episode.logprobs)
        found = np.asarray(scored[p, g, : len(drawn)])
        np.testing.assert_allclose(found[drawn], own[drawn], atol=1e-4)
        assert (own[~drawn] == 0).all()
        assert episode.status is Status.COMPLETED and episode.turns == 50
        assert episode.reward == 25.0 and episode.metrics == {"words": 50.0}


@pytest.mark.parametrize(
    "changes, world, status",
    [
        ({"turns": 2}, {}, Status.TURN_LIMIT),
        ({"turn_tokens": 1}, {}, Status.TURN_TOKEN_LIMIT),
        ({"tokens": 30}, {}, Status.TRUNCATED),
        ({"tool_seconds": 0.01}, {"delay": 60}, Status.TOOL_TIME_LIMIT),
        ({"seconds": 3.0}, {"delay": 60}, Status.TIME_LIMIT),
        ({}, {"fails_at": 2}, Status.FAILED),
        ({}, {"turns": 1}, Status.COMPLETED),
    ],
)
def test_each_end_has_its_status_and_closes_the_environment(changes, world, status, model):
    world = Echo(**world)
    never = dataclasses.replace(SAMPLING, stop_ids=(1,)) if "turn_tokens" in changes else SAMPLING
    (episode,) = run(model, [world], dataclasses.replace(LIMITS, **changes), never)
    assert episode.status is status, episode
    assert world.closed == 1
    assert ("the world broke" in (episode.error or "")) == (status is Status.FAILED)
    assert len(episode.response) == len(episode.mask) == len(episode.logprobs) <= 600


def test_groups_of_different_prompts_or_too_long_episodes_are_refused(model):
    (one,) = run(model, [Echo(turns=2)])
    other = dataclasses.replace(one, prompt=[3])
    with pytest.raises(ValueError, match="different prompts"):
        episodes_rollout([[one, other]], dataclasses.replace(SAMPLING, group_size=2), 8, 1024)
    with pytest.raises(ValueError, match="more than 1"):
        episodes_rollout([[one]], SAMPLING, 8, 1)
