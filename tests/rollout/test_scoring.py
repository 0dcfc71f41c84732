"""Scores of prompts against the model read directly."""

import asyncio
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.errors import UserError
from mmrl.models import Decoder
from mmrl.rollout.scoring import PromptScorer

CONFIG = dataclasses.replace(
    HYBRID, vocab_size=29, num_layers=2, layer_pattern=("lightning", "softmax"), num_experts=0
)
LENGTHS = (1, 2, 40, 64, 65, 64, 3)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


def test_scores_are_those_of_the_model_whatever_is_scored_beside(model):
    """65 tokens have another width than the others, which are scored in one program."""
    scorer, words = PromptScorer(model, 100), np.random.default_rng(0)
    prompts = [words.integers(0, 29, length).tolist() for length in LENGTHS]

    async def all_of_them():
        return await asyncio.gather(*(scorer.score(p, best=1 + i) for i, p in enumerate(prompts)))

    @jax.jit
    def read(tokens):
        return jax.nn.log_softmax(model(tokens)[0])

    for i, (prompt, scores) in enumerate(zip(prompts, asyncio.run(all_of_them()))):
        padded = np.zeros((1, 65), np.int32)
        padded[0, : len(prompt)] = prompt
        table = np.asarray(read(padded))[0, : len(prompt)]
        assert scores.next_token == table[-1].argmax()
        follows = [*prompt[1:], scores.next_token]
        np.testing.assert_allclose(
            scores.logprobs, table[np.arange(len(prompt)), follows], atol=2e-5
        )
        for row, best in zip(table, scores.best, strict=True):
            values = [value for _, value in best]
            assert len(best) == 1 + i
            np.testing.assert_allclose(values, np.sort(row)[::-1][: 1 + i], atol=2e-5)
            np.testing.assert_allclose(values, row[[token for token, _ in best]], atol=2e-5)


@pytest.mark.parametrize("length", [0, 101])
def test_a_prompt_without_tokens_or_with_too_many_is_refused(length, model):
    scorer = PromptScorer(model, 100)
    with pytest.raises(UserError, match="100"):
        asyncio.run(scorer.score([1] * length))


def test_a_prompt_that_nobody_waits_for_holds_up_nobody(model):
    scorer = PromptScorer(model, 100)

    async def run():
        left, *kept = (asyncio.create_task(scorer.score([3, n], best=7)) for n in range(3))
        await asyncio.sleep(0)
        left.cancel()
        return await asyncio.gather(*kept)

    assert [len(scores.logprobs) for scores in asyncio.run(run())] == [2, 2]
