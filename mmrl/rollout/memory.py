"""Rollouts within a share of the device's memory: as many prompts at once as their cache allows."""

import functools
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from mmrl import sharding
from mmrl.errors import UserError
from mmrl.models import Cache, Decoder, DecoderConfig
from mmrl.processes import exchange
from mmrl.rollout.rollout import Rollout
from mmrl.rollout.sampler import Array, generate, pad_prompts
from mmrl.rollout.sampling import SamplingConfig
from mmrl.sharding import Layout


@functools.cache
def cache_bytes(config: DecoderConfig, rows: int, group_size: int, slots: tuple[int, int]) -> int:
    """Bytes of the cache of `rows` prompts and their groups, on all devices together.

    `slots` are the tokens of a prompt and of a response that it has room for.
    """

    def create() -> Cache:
        return Cache.create(config, rows, slots[0]).fork(group_size, slots[1])

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(create)))


def rows_within(
    budget: float, config: DecoderConfig, prompts: int, sampling: SamplingConfig, prompt_length: int
) -> int:
    """The most of `prompts` whose cache has at most `budget` bytes.

    Raises `UserError` where not even one fits.
    """
    slots = (prompt_length, sampling.max_new_tokens)
    one, two = (cache_bytes(config, rows, sampling.group_size, slots) for rows in (1, 2))
    if one > budget:
        raise UserError(
            f"the cache of one prompt with {sampling.group_size} responses of "
            f"{sampling.max_new_tokens} tokens has {one / 2**20:,.1f} MiB and may have "
            f"{budget / 2**20:,.1f}: raise cache_memory_fraction, or lower sampling.group_size or "
            "sampling.max_new_tokens"
        )
    return min(1 + int((budget - one) // (two - one)), prompts)


def even_batches(total: int, largest: int, multiple: int = 1) -> list[slice]:
    """`total` rows as the fewest slices of at most `largest`, of nearly equal sizes.

    Sizes are multiples of `multiple`, the last one's aside, unless that is more than `largest`.
    """
    size = -(-total // -(-total // largest))
    rounded = -(-size // multiple) * multiple
    if rounded > largest:
        rounded = largest // multiple * multiple or size
    return [slice(start, min(start + rounded, total)) for start in range(0, total, rounded)]


def prompt_batches(
    memory_fraction: float | None,
    device_bytes: float,
    config: DecoderConfig,
    prompts: int,
    sampling: SamplingConfig,
    prompt_length: int,
    layout: Layout,
    mesh: AbstractMesh | None = None,
) -> list[slice]:
    """The fewest batches of prompts whose cache is within a share of the devices' memory.

    A cache is cut over the devices of a mesh, by default the current one, by rows and by heads of
    keys and values, and so is each batch's.
    """
    if memory_fraction is None:
        return [slice(0, prompts)]
    rows, heads = sharding.cache_shards(layout, config.num_kv_heads, mesh)
    budget = memory_fraction * device_bytes * rows * heads
    most = rows_within(budget, config, prompts, sampling, prompt_length)
    return even_batches(prompts, most, rows // math.gcd(rows, sampling.group_size))


def device_memory() -> int:
    """Bytes that a device of this process may allocate; on the CPU those of the machine."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limit


def generate_within(
    memory_fraction: float | None,
    model: Decoder,
    prompts: Sequence[Sequence[int]] | tuple[Array, Array],
    sampling: SamplingConfig,
    rng: jax.Array,
    *,
    max_new_tokens: Array | None = None,
    temperatures: Array | None = None,
    streaks: Array | None = None,
    layout: Layout = "train",
) -> Rollout:
    """As `generate`, in as few batches of prompts as keep the cache of each within its share.

    The share is `memory_fraction` of the memory of the devices; None is no bound. Each prompt gets
    the response that it would get in one batch.
    """
    arrays = dict(max_new_tokens=max_new_tokens, temperatures=temperatures, streaks=streaks)
    if memory_fraction is None:
        return generate(model, prompts, sampling, rng, layout=layout, **arrays)
    tokens, lengths = prompts if isinstance(prompts, tuple) else pad_prompts(prompts)
    device_bytes = min(exchange(device_memory()))
    if jax.default_backend() == "cpu":  # its virtual devices share its memory
        device_bytes /= math.prod(sharding.cache_shards(layout, model.config.num_kv_heads))
    batches = prompt_batches(
        memory_fraction,
        device_bytes,
        model.config,
        len(tokens),
        sampling,
        tokens.shape[1],
        layout,
    )
    seeds = jnp.arange(len(tokens), dtype=jnp.int32)
    parts = [
        generate(
            model,
            (tokens[part], lengths[part]),
            sampling,
            rng,
            seeds=seeds[part],
            layout=layout,
            **{name: None if x is None else x[part] for name, x in arrays.items()},
        )
        for part in batches
    ]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
