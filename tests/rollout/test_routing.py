"""Mixture of experts: the trainer routes every token to the experts that the sampler chose.

Where sampler and trainer are two programs they disagree on experts, and routing has to be replayed.
"""

import dataclasses

import jax
import numpy as np
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.models import Decoder
from mmrl.models.mlp import MixtureOfExperts
from mmrl.rollout import SamplingConfig, generate, score

LAYERS, EXPERTS, CHOSEN = 2, 6, 2
CONFIG = dataclasses.replace(
    HYBRID,
    vocab_size=29,
    num_layers=LAYERS,
    layer_pattern=("lightning", "softmax"),
    num_experts=EXPERTS,
    experts_per_token=CHOSEN,
)
PROMPTS = [[3, 4, 5, 6], [7, 8]]
SAMPLING = SamplingConfig(group_size=2, max_new_tokens=6, stop_ids=())


def test_the_experts_of_sampler_and_trainer_are_equal(monkeypatch):
    """Both run operation by operation, so that each call of the router can be written down."""
    calls: list[np.ndarray] = []
    route = MixtureOfExperts.route

    def recorded(self, x):
        weights, ids, probs = route(self, x)
        calls.append(np.asarray(ids))
        return weights, ids, probs

    monkeypatch.setattr(MixtureOfExperts, "route", recorded)
    model = Decoder(CONFIG, nnx.Rngs(0))
    with jax.disable_jit():
        rollout = generate(model, PROMPTS, SAMPLING, jax.random.key(0))
        sampled = list(calls)
        calls.clear()
        score(model, rollout, 1.0)
    assert len(sampled) == LAYERS * (1 + SAMPLING.max_new_tokens) and len(calls) == 2 * LAYERS
    for layer in range(LAYERS):
        prompts = sampled[layer], calls[layer]
        assert np.array_equal(*prompts)
        drawn = np.concatenate(sampled[LAYERS + layer :: LAYERS], axis=1)
        assert drawn.shape == (4, SAMPLING.max_new_tokens, CHOSEN)
        assert np.array_equal(drawn, calls[LAYERS + layer])
        assert len(np.unique(drawn)) > CHOSEN
