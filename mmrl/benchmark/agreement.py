"""How far the sampler and the trainer disagree about the same weights, by model and dtype.

Random weights, whose distributions are flat: 8 responses to prompts of 40 tokens, scored as an
update scores them. In float32 what is left is the order of sums. In bfloat16 a sum next to a tie
rounds to either side, every layer makes such a difference larger, and after a few layers it is
that of bfloat16 itself; products whose sums have one order in both programs do not begin it.
"""

import dataclasses

import jax
import numpy as np
from flax import nnx

from mmrl.models import Decoder, DecoderConfig
from mmrl.rollout import SamplingConfig, generate
from mmrl.training.update import score_logprobs

DENSE = DecoderConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=256,
    initializer_range=0.06,
)
HYBRID = dataclasses.replace(DENSE, layer_pattern=("lightning",) * 3 + ("softmax",))
MODELS = {"dense": DENSE, "hybrid": HYBRID}
PROMPTS, SAMPLES, PROMPT_LENGTH = 2, 4, 40


def figures(new_tokens: int) -> dict[str, dict[str, float]]:
    """Mean and greatest difference of the log-probability of a token."""
    found = {}
    for name, config in MODELS.items():
        for dtype in ("float32", "bfloat16"):
            difference = differences(dataclasses.replace(config, dtype=dtype), new_tokens)
            found[f"{name}_{dtype}"] = {
                "mean": float(difference.mean()),
                "max": float(difference.max()),
            }
    return found


def differences(config: DecoderConfig, new_tokens: int) -> np.ndarray:
    """|sampler - trainer| of every token, [prompts, samples, tokens]."""
    model = Decoder(config, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab_size, (PROMPTS, PROMPT_LENGTH)).tolist()
    sampling = SamplingConfig(group_size=SAMPLES, max_new_tokens=new_tokens)
    rollout = generate(model, prompts, sampling, jax.random.key(0))
    graphdef, params = nnx.split(model)
    scored = score_logprobs(
        params, rollout.arrays(), graphdef=graphdef, temperature=1.0, micro_batches=1
    )
    return np.abs(np.asarray(scored) - np.asarray(rollout.behaviour_logprobs))
