"""The decode cache: a fixed-size state for lightning layers, key and value slots for softmax."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mmrl.models.config import DecoderConfig
from mmrl.sharding import constrain

STATE_AXES = ("layers", "batch", "activation_heads", None, None)
KEY_AXES = ("layers", "batch", "activation_kv_heads", None, None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LightningState:
    """`kv` [L, B, H, D, D] in float32: sum of decayed outer products of keys and values."""

    kv: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """`k`, `v` [L, B, kv_heads, S, D]: keys after rotation, and values."""

    k: jax.Array
    v: jax.Array


Entry = LightningState | KeyValues


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a model remembers of the tokens it has read.

    `layers` has one entry for each run of equal layers in the pattern (`DecoderConfig.runs`), with
    all L layers of that run in the model stacked; `unstacked`, a tuple of L entries of one layer,
    without the leading axis.
    `positions` [B, S] is the position of the token in each slot, -1 where a slot is empty or holds
    padding; `lengths` [B] counts the tokens of each row. `slot` [] is the next slot to write, the
    same in every row, padding included; it is None where each row writes at its own length and
    padding nowhere, so that rows can begin, wait and end independently of one another.
    `prompt` is a read-only cache with B / G rows that groups of G rows share.
    """

    layers: tuple[Entry | tuple[Entry, ...], ...]
    positions: jax.Array
    lengths: jax.Array
    slot: jax.Array | None
    prompt: "Cache | None" = None

    @classmethod
    def create(
        cls, config: DecoderConfig, batch: int, slots: int, *, independent: bool = False
    ) -> "Cache":
        """An empty cache for `batch` rows with room for `slots` tokens in the softmax layers.

        Its rows share the next slot, or are `independent`.
        """
        d = config.head_dim

        def run(kind: str, length: int) -> Entry:
            layers = config.num_groups * length
            if kind == "lightning":
                state = jnp.zeros((layers, batch, config.num_heads, d, d))
                return LightningState(constrain(state, *STATE_AXES))
            empty = jnp.zeros((layers, batch, config.num_kv_heads, slots, d), config.dtype)
            empty = constrain(empty, *KEY_AXES)
            return KeyValues(empty, empty)

        return cls(
            layers=tuple(run(kind, length) for kind, length in config.runs),
            positions=jnp.full((batch, slots), -1, jnp.int32),
            lengths=jnp.zeros((batch,), jnp.int32),
            slot=None if independent else jnp.zeros((), jnp.int32),
        )

    @property
    def slots(self) -> int:
        """Tokens that the softmax layers can hold, the shared prompt not counted."""
        return self.positions.shape[1]

    def fork(self, group_size: int, slots: int) -> "Cache":
        """A cache with `group_size` continuations of each row: row b continues row b // group_size.

        The lightning states are repeated (they are small and will differ); keys and values of the
        prompt are shared. With `slots=0` the continuation may be read in one call only, which is
        what training does: its own keys and values need no slots then.
        Raises ValueError for a cache that is itself a fork.
        """
        if self.prompt is not None:
            raise ValueError("a forked cache cannot be forked again")

        def run(entry: Any) -> Entry:
            if isinstance(entry, LightningState):
                state = jnp.repeat(entry.kv, group_size, axis=1)
                return LightningState(constrain(state, *STATE_AXES))
            n, batch, heads, _, d = entry.k.shape
            empty = jnp.zeros((n, batch * group_size, heads, slots, d), entry.k.dtype)
            empty = constrain(empty, *KEY_AXES)
            return KeyValues(empty, empty)

        rows = self.lengths.shape[0] * group_size
        return Cache(
            layers=tuple(run(entry) for entry in self.layers),
            positions=jnp.full((rows, slots), -1, jnp.int32),
            lengths=jnp.repeat(self.lengths, group_size),
            slot=jnp.zeros((), jnp.int32),
            prompt=self,
        )

    def unstacked(self) -> "Cache":
        """The cache with arrays of its own for each layer, for a loop over `Decoder.loop_weights`.

        A CPU copies the slice of a stack that a product reads, and a layer's whole array not.
        """

        def apart(entry: Entry | tuple[Entry, ...]) -> tuple[Entry, ...]:
            if isinstance(entry, tuple):
                return entry
            layers = len(jax.tree.leaves(entry)[0])
            return tuple(jax.tree.map(lambda x, i=i: x[i], entry) for i in range(layers))

        prompt = None if self.prompt is None else self.prompt.unstacked()
        return dataclasses.replace(self, layers=tuple(map(apart, self.layers)), prompt=prompt)

    def stacked(self) -> "Cache":
        """The inverse of `unstacked`."""

        def whole(entry: Entry | tuple[Entry, ...]) -> Entry:
            if not isinstance(entry, tuple):
                return entry
            return jax.tree.map(lambda *layers: jnp.stack(layers), *entry)

        prompt = None if self.prompt is None else self.prompt.stacked()
        return dataclasses.replace(self, layers=tuple(map(whole, self.layers)), prompt=prompt)

    @property
    def is_unstacked(self) -> bool:
        return isinstance(self.layers[0], tuple)

    def take(self, rows: jax.Array, prompts: jax.Array | None = None) -> "Cache":
        """The cache of some rows, each with a prompt of its own: row i of `prompts` of the shared.

        `rows` and `prompts` as of `take_rows`.
        """
        axis = 0 if self.is_unstacked else 1
        layers = jax.tree.map(lambda x: take_rows(x, rows, axis), self.layers)
        positions, lengths = (take_rows(x, rows) for x in (self.positions, self.lengths))
        prompt = None
        if self.prompt is not None and prompts is not None:
            prompt = self.prompt.take(prompts)
        return Cache(layers, positions, lengths, self.slot, prompt)

    def targets(self, segment_ids: jax.Array) -> jax.Array:
        """Where T new tokens go: the first slot [], or of independent rows each token's own [B, T].

        There padding has a slot past the last one.
        """
        if self.slot is not None:
            return self.slot
        valid = segment_ids != 0
        slots = self.lengths[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
        return jnp.where(valid, slots, self.slots)

    def advance(self, positions: jax.Array, segment_ids: jax.Array) -> "Cache":
        """The bookkeeping for T new tokens: slots take their positions, -1 for padding [B, T]."""
        valid = segment_ids != 0
        lengths = self.lengths + valid.sum(axis=1, dtype=jnp.int32)
        slot = None if self.slot is None else self.slot + positions.shape[1]
        slots, targets = self.positions, self.targets(segment_ids)
        if self.slots and targets.ndim:
            slots = slots.at[jnp.arange(len(slots))[:, None], targets].set(positions, mode="drop")
        elif self.slots:
            new = jnp.where(valid, positions, -1)
            slots = jax.lax.dynamic_update_slice(slots, new, (0, targets))
        return dataclasses.replace(self, positions=slots, lengths=lengths, slot=slot)


def take_rows(x: jax.Array, rows: jax.Array, axis: int = 0) -> jax.Array:
    """Rows of an axis: of numbers [R], or [D, R / D] within each of D equal groups of the axis.

    Groups that lie on devices of their own stay there. A number past the last gives the last.
    """
    if rows.ndim == 1:
        return jnp.take(x, rows, axis=axis, mode="clip")
    take = functools.partial(jnp.take, axis=axis, mode="clip")
    found = jax.vmap(take, in_axes=(axis, 0), out_axes=axis)(split_rows(x, len(rows), axis), rows)
    return found.reshape(*x.shape[:axis], rows.size, *x.shape[axis + 1 :])


def split_rows(x: jax.Array, groups: int, axis: int = 0) -> jax.Array:
    """The axis cut into equal groups, which come before it."""
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])


def write_slots(entry: KeyValues, k: jax.Array, v: jax.Array, index: jax.Array | None, targets):
    """Writes k, v [B, kv_heads, T, D] of layer `index` into the slots of `Cache.targets`.

    The index is None for the entry of one layer of an `unstacked` cache.
    """
    layer = () if index is None else (index,)
    if targets.ndim:
        rows = jnp.arange(k.shape[0])[:, None]

        def write(slots: jax.Array, new: jax.Array) -> jax.Array:
            # Indices apart from one another put their axes first: [B, T, kv_heads, D].
            new = new.swapaxes(1, 2)
            return slots.at[(*layer, rows, slice(None), targets)].set(new, mode="drop")

        return KeyValues(write(entry.k, k), write(entry.v, v))
    start = (*layer, 0, 0, targets, 0)
    if layer:
        k, v = k[None], v[None]
    return KeyValues(
        jax.lax.dynamic_update_slice(entry.k, k, start),
        jax.lax.dynamic_update_slice(entry.v, v, start),
    )


def read_layer(entry: Entry, index: jax.Array | None):
    """Layer `index` of a run's entry, without the leading axis; one of its own as it is."""
    if index is None:
        return entry
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), entry)
