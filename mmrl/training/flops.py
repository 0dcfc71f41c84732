"""FLOPs of a training step and the peak to hold them against, for `throughput/mfu`."""

import functools
import time

import jax
import jax.numpy as jnp

from mmrl.chips import chip_of
from mmrl.models import DecoderConfig, parameter_count


def flops_per_token(config: DecoderConfig) -> float:
    """Forward FLOPs of a token: 2 a multiply-add of its active weights and of the head.

    Attention over earlier tokens is left out: it is below 5% at the lengths of a small run, and a
    lightning layer's part does not grow with length at all.
    """
    _, active = parameter_count(config)
    return 2.0 * (active + config.vocab_size * config.hidden_size)


def step_flops(
    config: DecoderConfig, *, prompt_tokens: int, response_tokens: int, update_passes: float = 1.0
) -> float:
    """FLOPs of an RL step that reads each prompt once a group: rollout (1×) and update (3×, with
    LoRA 2×: there are no products for the gradients of the weights).

    Tokens are those really processed, padding not counted; `update_passes` is how often the step
    trains on each token.
    """
    tokens = prompt_tokens + response_tokens
    update = 3.0 if config.lora is None else 2.0
    return flops_per_token(config) * tokens * (1.0 + update * update_passes)


@functools.cache
def peak_flops() -> float:
    """Peak FLOP/s of all devices: from the table, or measured by a 1,024³ float32 product."""
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is not None:
        return chip.peak_bfloat16 * jax.device_count()
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)
