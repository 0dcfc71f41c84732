"""How cost grows: a step's time with its sizes, and decoding with the context, by kind of layer."""

import dataclasses
import functools
import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.benchmark import model
from mmrl.benchmark.timing import median_seconds
from mmrl.benchmark.workload import QWEN2, Workload, run
from mmrl.models import Cache, Decoder, DecoderConfig
from mmrl.rollout.rows import loop_weights

CONTEXT = 32768


def filled_cache(config: DecoderConfig, rows: int, context: int, slots: int) -> Cache:
    """A cache of rows as after `context` tokens, whose keys, values and states are random."""
    cache = Cache.create(config, rows, slots)
    slot = jnp.broadcast_to(jnp.arange(slots), (rows, slots))
    cache = dataclasses.replace(
        cache,
        layers=jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), cache.layers),
        positions=jnp.where(slot < context, slot, -1),
        lengths=jnp.full((rows,), context, jnp.int32),
        slot=jnp.asarray(context, jnp.int32),
    )
    return Decoder.cache_of_loop(config, cache)


def hybrid(rows: int, new_tokens: int, repeats: int, context: int = CONTEXT) -> dict[str, float]:
    """Decoding of rows after `context` tokens by the hybrid and by its all-softmax twin."""
    found: dict[str, float] = {}
    for name, pattern in (("hybrid", model.MODEL.layer_pattern), ("softmax", ("softmax",))):
        config = dataclasses.replace(model.MODEL, layer_pattern=pattern)
        graphdef, params = nnx.split(Decoder(config, nnx.Rngs(0)))
        cache = filled_cache(config, rows, context, context + new_tokens)
        layers = loop_weights(graphdef, params, "train")
        arguments = (graphdef, params, layers, cache, jax.random.key(1), new_tokens)
        seconds = median_seconds(functools.partial(model.decode, *arguments), repeats)
        found[f"{name}_decode_tok_s"] = rows * new_tokens / seconds
        found[f"{name}_cache_mib"] = sum(x.nbytes for x in jax.tree.leaves(cache)) / 2**20
    return found | {
        "speed_ratio": found["hybrid_decode_tok_s"] / found["softmax_decode_tok_s"],
        "cache_ratio": found["hybrid_cache_mib"] / found["softmax_cache_mib"],
    }


SMALL = Workload(prompts=4, samples=8, prompt_length=32, new_tokens=64)
EXPERTS = dataclasses.replace(QWEN2, intermediate_size=256, num_experts=2, experts_per_token=2)


def variants() -> dict[str, list[tuple[int, Workload]]]:
    """What grows, and the workloads along it; with the experts a token's own stay two."""
    replace = dataclasses.replace

    def with_model(config, **changes) -> Workload:
        return replace(SMALL, model=replace(config, **changes))

    return {
        "samples": [(n, replace(SMALL, samples=n)) for n in (8, 16, 32)],
        "length": [(n, replace(SMALL, new_tokens=n)) for n in (64, 128, 256)],
        "layers": [(n, with_model(QWEN2, num_layers=n)) for n in (3, 6, 12)],
        "experts": [(n, with_model(EXPERTS, num_experts=n)) for n in (4, 8, 16)],
    }


def exponents(steps: int) -> dict[str, object]:
    """Slopes of log seconds over log size, of a whole step, and the seconds they are fitted to."""
    found: dict[str, object] = {}
    for name, points in variants().items():
        seconds = [
            statistics.median(step.seconds for step in run(workload, steps)[0][1:])
            for _, workload in points
        ]
        found[name] = slope([size for size, _ in points], seconds)
        found[f"{name}_seconds"] = [round(s, 3) for s in seconds]
    return found


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent of the power law that fits best."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
