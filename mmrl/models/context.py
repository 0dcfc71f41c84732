"""What all layers of one forward pass read beside its activations, and how it is made."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mmrl.models.cache import Cache
from mmrl.models.packing import Packing
from pallas_kernels import target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What all layers of one forward pass share.

    `positions`, `segment_ids` [B, T] (segment 0 is padding); `turns` [B, T, W/2] of the rotary
    embedding (`rotary_turns`); `cache` after `advance`, or None; `targets` where this pass writes
    its keys (`Cache.targets`). With a `packing` activations and turns are those of its one row, and
    are unpacked to [B, T] where tokens meet.
    """

    positions: jax.Array
    segment_ids: jax.Array
    turns: tuple[jax.Array, jax.Array]
    cache: Cache | None
    targets: jax.Array | None = None
    packing: Packing | None = None

    def pack(self, x: jax.Array) -> jax.Array:
        return x if self.packing is None else self.packing.pack(x)

    def unpack(self, x: jax.Array) -> jax.Array:
        return x if self.packing is None else self.packing.unpack(x)


def computed_once(context: Context) -> Context:
    """The context, with what every layer reads of it in memory.

    XLA's CPU compiler would compute positions and turns again for each element of the scores and
    heads that depends on them, and it drops optimization barriers before it decides so. What comes
    out of a branch it keeps.
    """
    if target.platform() != "cpu":
        return context
    cache = context.cache
    of_cache = None if cache is None else cache.positions
    of_prompt = None if cache is None or cache.prompt is None else cache.prompt.positions
    found = (context.positions, context.segment_ids, context.turns, of_cache, of_prompt)
    never = context.segment_ids[0, 0] < 0
    positions, segment_ids, turns, of_cache, of_prompt = jax.lax.cond(
        never, lambda x: jax.tree.map(jnp.zeros_like, x), lambda x: x, found
    )
    if cache is not None and cache.prompt is not None:
        prompt = dataclasses.replace(cache.prompt, positions=of_prompt)
        cache = dataclasses.replace(cache, prompt=prompt)
    if cache is not None:
        cache = dataclasses.replace(cache, positions=of_cache)
    return dataclasses.replace(
        context, positions=positions, segment_ids=segment_ids, turns=turns, cache=cache
    )


def count_positions(segment_ids: jax.Array, cache: Cache | None) -> jax.Array:
    """Positions that count the tokens of each sequence from 0, or on from the cache; [B, T]."""
    valid = segment_ids != 0
    counts = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    if cache is not None:
        return cache.lengths[:, None] + counts
    # The first token of each segment holds its own count; the running maximum spreads it.
    last = jax.lax.cummax(jnp.where(valid, segment_ids, 0), axis=1)
    previous = jnp.pad(last, ((0, 0), (1, 0)))[:, :-1]
    starts = jnp.where(valid & (segment_ids != previous), counts, 0)
    return counts - jax.lax.cummax(starts, axis=1)
