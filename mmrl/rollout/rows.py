"""Programs over rows that begin, read, decode and end independently of one another.

    read_rows:    the new tokens of some rows into their caches, a prompt or what a tool returned
    decode_rows:  up to N tokens for every running row, each with its own settings and generator

Shapes are fixed, so that continuous batching (`mmrl.rollout.continuous`) compiles a few programs
once. Both call the one forward function, as `generate` does, and a row's tokens do not depend on
what the rows around it do.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl import sharding
from mmrl.compilation import model_jit
from mmrl.models import Cache, Decoder, DecoderConfig
from mmrl.models.cache import LightningState
from mmrl.rollout.sampling import certain_streak, draw_rows
from mmrl.sharding import Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowInputs:
    """What decoding needs of each of B rows.

    token        [B] int32, the row's last token, which its cache does not hold yet
    left         [B] int32, tokens that the row may still draw; 0 for a row that does not run
    drawn        [B] int32, tokens it has drawn so far, which number its random numbers
    key_data     [B, …] uint32, the data of the row's random key
    temperature, top_p   [B] float32;  top_k, nucleus_size [B] int32, as in `SamplingConfig`
    stop_ids     [B, N] int32, -1 padded
    streak       [B] int32, tokens up to the last that were more probable than the row's bound
    streak_limit [B] int32, such tokens at which it stops;  streak_logprob [B] float32, the bound
    """

    token: Any
    left: Any
    drawn: Any
    key_data: Any
    temperature: Any
    top_p: Any
    top_k: Any
    nucleus_size: Any
    stop_ids: Any
    streak: Any
    streak_limit: Any
    streak_logprob: Any


class RowSettings(NamedTuple):
    """What a decode program is compiled for: steps, and whether it truncates or lists the best.

    `support` is the number of ids that top-k and top-p may leave, 0 where no row truncates; `best`
    the number of most probable tokens that are reported at each step.
    """

    steps: int
    support: int
    best: int


@functools.partial(jax.jit, static_argnames=("config", "rows", "slots", "layout"))
def empty_rows(config: DecoderConfig, rows: int, slots: int, layout: Layout) -> Cache:
    with sharding.layout(layout):
        cache = Cache.create(config, rows, slots, independent=True)
        return Decoder.cache_of_loop(config, cache)


@functools.partial(jax.jit, static_argnames=("graphdef", "layout"))
def loop_weights(graphdef, params, layout: Layout):
    with sharding.layout(layout):
        return nnx.merge(graphdef, params).loop_weights()


@functools.partial(model_jit, static_argnames=("graphdef", "layout"), donate_argnames="cache")
def read_rows(
    graphdef,
    params,
    cache: Cache,
    rows: jax.Array,
    begins: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    layout: Layout,
) -> Cache:
    """Reads the first `lengths` [R] of tokens [R, T] into `rows` [R] of the cache.

    A row that `begins` [R] forgets what it held. A row number past the last stands for no row.
    """
    with sharding.layout(layout):
        part = _begin(cache.take(rows), begins)
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
        model: Decoder = nnx.merge(graphdef, params)
        _, part, _ = model.hidden_states(tokens, segment_ids=valid.astype(jnp.int32), cache=part)
        return _put(cache, rows, part)


def _begin(cache: Cache, begins: jax.Array) -> Cache:
    """Empties the rows that begin; keys and values in slots without a position are not seen."""

    def is_state(entry) -> bool:
        return isinstance(entry, LightningState)

    def clear(entry):
        if not is_state(entry):
            return entry
        return LightningState(jnp.where(begins[:, None, None, None], 0.0, entry.kv))

    return Cache(
        jax.tree.map(clear, cache.layers, is_leaf=is_state),
        jnp.where(begins[:, None], -1, cache.positions),
        jnp.where(begins, 0, cache.lengths),
        None,
    )


def _put(cache: Cache, rows: jax.Array, part: Cache) -> Cache:
    where = rows if cache.is_unstacked else (slice(None), rows)
    layers = jax.tree.map(lambda x, y: x.at[where].set(y, mode="drop"), cache.layers, part.layers)
    positions, lengths = (
        x.at[rows].set(y, mode="drop")
        for x, y in ((cache.positions, part.positions), (cache.lengths, part.lengths))
    )
    return Cache(layers, positions, lengths, None)


@functools.partial(
    model_jit, static_argnames=("graphdef", "settings", "layout"), donate_argnames="cache"
)
def decode_rows(
    graphdef,
    params,
    layers,
    cache: Cache,
    inputs: RowInputs,
    running: jax.Array,
    settings: RowSettings,
    layout: Layout,
) -> tuple[Cache, dict[str, jax.Array]]:
    """Draws tokens until fewer than `running` [] rows run, at most `settings.steps` a row.

    Returns the cache and, with the step as the leading axis: `tokens` and `logprobs` [N, B] (of the
    distribution that the token was drawn from), `mask` [N, B], true where a row ran; with a support
    its ids [N, B, K] (-1 padded), and `best_ids`, `best_logprobs` [N, B, best] of the model's own
    distribution, with the drawn token's under it as `model_logprobs` [N, B].
    """
    with sharding.layout(layout):
        return _decode(graphdef, params, layers, cache, inputs, running, settings)


def _decode(graphdef, params, layers, cache, inputs: RowInputs, running, settings: RowSettings):
    model: Decoder = nnx.merge(graphdef, params)
    rows = inputs.token.shape[0]
    keys = jax.random.wrap_key_data(inputs.key_data)
    fold_in = jax.vmap(jax.random.fold_in)

    def unfinished(carry):
        step, _, left, *_ = carry
        return (step < settings.steps) & (jnp.sum(left > 0) >= running)

    def decode(carry):
        step, token, left, streak, cache, outputs = carry
        runs = left > 0
        segments = runs[:, None].astype(jnp.int32)
        logits, cache = model(token[:, None], segment_ids=segments, cache=cache, layers=layers)
        drawn, logprob, support = draw_rows(
            logits[:, 0],
            fold_in(keys, inputs.drawn + step),
            inputs.temperature,
            inputs.top_k,
            inputs.top_p,
            inputs.nucleus_size,
            settings.support,
        )
        token = jnp.where(runs, drawn, token)
        new = {"tokens": token, "logprobs": logprob, "mask": runs}
        if settings.support:
            new["support"] = support
        if settings.best:
            normalised = jax.nn.log_softmax(logits[:, 0])
            new["best_logprobs"], new["best_ids"] = jax.lax.top_k(normalised, settings.best)
            new["model_logprobs"] = jnp.take_along_axis(normalised, drawn[:, None], axis=1)[:, 0]
        outputs = jax.tree.map(lambda buffer, x: buffer.at[step].set(x), outputs, new)
        streak = certain_streak(streak, logprob, inputs.streak_logprob)
        stopped = jnp.any(token[:, None] == inputs.stop_ids, axis=1)
        stopped |= streak >= inputs.streak_limit
        left = jnp.where(stopped, 0, jnp.maximum(left - 1, 0))
        return step + 1, token, left, streak, cache, outputs

    def buffer(dtype, *shape):
        return jnp.zeros((settings.steps, rows, *shape), dtype)

    outputs = {
        "tokens": buffer(jnp.int32),
        "logprobs": buffer(jnp.float32),
        "mask": buffer(jnp.bool_),
    }
    if settings.support:
        outputs["support"] = buffer(jnp.int32, settings.support)
    if settings.best:
        outputs["best_logprobs"] = buffer(jnp.float32, settings.best)
        outputs["best_ids"] = buffer(jnp.int32, settings.best)
        outputs["model_logprobs"] = buffer(jnp.float32)
    start = jnp.zeros((), jnp.int32)
    carry = (start, inputs.token, inputs.left, inputs.streak, cache, outputs)
    *_, cache, outputs = jax.lax.while_loop(unfinished, decode, carry)
    return cache, outputs
