"""Sampling and scoring: the same two calls of the decoder, once token by token, once all at once.

    prompt[:-1]  ->  prefill, once a prompt  ->  cache.fork(G)
    sampler:  prompt[-1] -> token 0 -> token 1 -> …          one decode step each
    trainer:  [prompt[-1], token 0, …, token T-2]            one call, logits of token 0 … T-1

Both read the trainer's own parameters, so an unchanged policy gives the behaviour log-probabilities
again, and gradients flow through the shared prompt into all of its responses.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl import sharding
from mmrl.compilation import model_jit
from mmrl.data.records import Status
from mmrl.models import Cache, Decoder
from mmrl.models.cache import split_rows, take_rows
from mmrl.models.packing import Packing
from mmrl.rollout.rollout import Rollout
from mmrl.rollout.sampling import SamplingConfig, certain_streak, draw
from mmrl.sharding import Layout, cache_groups, row_groups

Array = jax.Array | np.ndarray
Shaped = Array | jax.ShapeDtypeStruct


def pad_prompts(prompts: Sequence[Sequence[int]], length: int | None = None):
    """Right-pads token lists to [P, S] int32 and returns their lengths [P].

    Raises ValueError for an empty prompt, or one longer than `length`.
    """
    lengths = [len(prompt) for prompt in prompts]
    width = length or max(lengths)
    for row, n in enumerate(lengths):
        if not 0 < n <= width:
            raise ValueError(
                f"prompt {row} has {n} tokens; it must have 1 to {width}: raise the prompt length "
                "of the config or drop the prompt"
            )
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.asarray(lengths, np.int32)


def prefill(model: Decoder, prompt_tokens: jax.Array, prompt_lengths: jax.Array):
    """Reads all but the last token of each prompt [P, S]; returns the cache and the last tokens."""
    rows, width = prompt_tokens.shape
    valid = jnp.arange(width) < prompt_lengths[:, None] - 1
    cache = Cache.create(model.config, rows, width)
    _, cache, _ = model.hidden_states(
        prompt_tokens, segment_ids=valid.astype(jnp.int32), cache=cache
    )
    last = jnp.take_along_axis(prompt_tokens, prompt_lengths[:, None] - 1, axis=1)[:, 0]
    return cache, last


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]] | tuple[Array, Array],
    sampling: SamplingConfig,
    rng: jax.Array,
    *,
    seeds: Array | None = None,
    max_new_tokens: Array | None = None,
    temperatures: Array | None = None,
    streaks: Array | None = None,
    layout: Layout = "train",
) -> Rollout:
    """Samples `sampling.group_size` responses for each prompt.

    Args:
      prompts: token lists, or (tokens [P, S], lengths [P]) already right-padded.
      rng: a key; together with a prompt's seed and the sample's index it fixes the response.
      seeds: [P] int32, default 0 … P-1. A prompt with the same seed gives the same tokens whatever
        batch it sits in.
      max_new_tokens: [P, G] int32 limits below `sampling.max_new_tokens`, where rows differ.
      temperatures: [P] float32, positive, in place of `sampling.temperature`, where prompts differ.
      streaks: [P, G] int32, where the responses continue others: the tokens at the end of each that
        `sampling.repetition_stop` counts already.
      layout: where the model's parameters lie on the mesh (`mmrl.sharding`).

    Returns: a `Rollout` with reward and advantages 0 and status COMPLETED where a stop token ended
    the response (the stop token is part of it), TRUNCATED where the limit did, and REPETITION where
    `sampling.repetition_stop` did.
    """
    return generate_program(
        *program_arguments(
            model,
            prompts,
            sampling,
            rng,
            seeds=seeds,
            max_new_tokens=max_new_tokens,
            temperatures=temperatures,
            streaks=streaks,
            layout=layout,
        )
    )


def program_arguments(
    model: Decoder,
    prompts: Sequence[Sequence[int]] | tuple[Shaped, Shaped],
    sampling: SamplingConfig,
    rng: Shaped,
    *,
    seeds: Shaped | None = None,
    max_new_tokens: Shaped | None = None,
    temperatures: Shaped | None = None,
    streaks: Shaped | None = None,
    layout: Layout = "train",
) -> tuple:
    """What `generate` gives to `generate_program`; arrays may be shapes, for compiling ahead."""
    tokens, lengths = prompts if isinstance(prompts, tuple) else pad_prompts(prompts)
    shape = (tokens.shape[0], sampling.group_size)
    if seeds is None:
        seeds = np.arange(shape[0], dtype=np.int32)
    if max_new_tokens is None:
        max_new_tokens = np.full(shape, sampling.max_new_tokens, np.int32)
    graphdef, params = nnx.split(model)
    arrays = (params, tokens, lengths, seeds, max_new_tokens, rng)
    if temperatures is not None:
        sampling = dataclasses.replace(sampling, temperature=1.0)
    return (graphdef, *arrays, sampling, layout, temperatures, streaks)


@functools.partial(model_jit, static_argnames=("graphdef", "sampling", "layout"))
def generate_program(
    graphdef,
    params,
    prompt_tokens,
    prompt_lengths,
    seeds,
    limits,
    rng,
    sampling,
    layout,
    temperatures=None,
    streaks=None,
) -> Rollout:
    """`generate` as the program that is compiled, see `program_arguments`."""
    arrays = (prompt_tokens, prompt_lengths, seeds, limits, rng)
    with sharding.layout(layout):
        return _sample(graphdef, params, *arrays, sampling, temperatures, streaks)


def _sample(
    graphdef,
    params,
    prompt_tokens,
    prompt_lengths,
    seeds,
    limits,
    rng,
    sampling,
    temperatures,
    streaks,
):
    model = nnx.merge(graphdef, params)
    (prompts, _), group, length = prompt_tokens.shape, sampling.group_size, sampling.max_new_tokens
    batch = prompts * group
    cache, last = prefill(model, prompt_tokens, prompt_lengths)
    cache = model.cache_of_loop(model.config, cache.fork(group, length))
    layers = model.loop_weights()
    rows = _begin(prompts, group, seeds, limits, rng, sampling, temperatures)
    stop_ids = jnp.asarray(sampling.stop_ids, jnp.int32)
    repetition = sampling.repetition_stop

    def decode(carry: _Decoding) -> _Decoding:
        rows, running = carry.rows, carry.status == Status.PENDING
        segments = running[:, None].astype(jnp.int32)
        logits, cache = model(
            carry.token[:, None], segment_ids=segments, cache=carry.cache, layers=layers
        )
        logits = logits[:, 0] if rows.temperature is None else logits[:, 0] / rows.temperature
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.key, carry.step)
        drawn, logprob, support = draw(logits, step_keys, sampling)
        token = jnp.where(running, drawn, 0)
        new = {"tokens": token, "logprobs": jnp.where(running, logprob, 0.0), "mask": running}
        if support is not None:
            new["support"] = jnp.where(running[:, None], support, -1)
        outputs = jax.tree.map(
            lambda buffer, value: buffer.at[carry.step].set(value.astype(buffer.dtype)),
            carry.outputs,
            new,
        )
        stopped = jnp.isin(token, stop_ids)
        ended = jnp.where(stopped, Status.COMPLETED, Status.TRUNCATED)
        ends = stopped | (carry.step + 1 >= rows.limit)
        streak = carry.streak
        if repetition is not None:
            streak = certain_streak(streak, logprob, repetition.logprob)
            repeats = (streak >= repetition.tokens) & ~stopped
            ended, ends = jnp.where(repeats, Status.REPETITION, ended), ends | repeats
        status = jnp.where(running & ends, ended, carry.status)
        return _Decoding(carry.step + 1, rows, status, token, cache, outputs, streak)

    outputs = {
        "tokens": jnp.zeros((length, batch), jnp.int32),
        "logprobs": jnp.zeros((length, batch), jnp.float32),
        "mask": jnp.zeros((length, batch), jnp.float32),
    }
    if sampling.truncates:
        kept = min(sampling.top_k or sampling.nucleus_size, model.config.vocab_size)
        outputs["support"] = jnp.full((length, batch, kept), -1, jnp.int32)
    status = jnp.where(rows.limit > 0, Status.PENDING, Status.TRUNCATED).astype(jnp.int32)
    streak = None
    if repetition is not None:
        streak = jnp.zeros(batch, jnp.int32) if streaks is None else streaks.reshape(batch)
    step, first = jnp.zeros((), jnp.int32), jnp.repeat(last, group)
    carry = _Decoding(step, rows, status, first, cache, outputs, streak)
    found = status, outputs
    sizes = _group_sizes(rows.number.shape, sampling.compactions)
    for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):
        carry = _compacted(carry, size, group)
        carry = jax.lax.while_loop(functools.partial(_more_than, smaller, length), decode, carry)
        found = _put(*found, carry)
    status, outputs = found
    outputs = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(prompts, group, length, *x.shape[2:]), outputs
    )
    zeros = jnp.zeros((prompts, group), jnp.float32)
    return Rollout(
        prompt_tokens=prompt_tokens,
        prompt_lengths=prompt_lengths,
        tokens=outputs["tokens"],
        lengths=outputs["mask"].astype(jnp.int32).sum(axis=-1),
        mask=outputs["mask"],
        behaviour_logprobs=outputs["logprobs"],
        support=outputs.get("support"),
        status=status.reshape(prompts, group),
        reward=zeros,
        advantages=zeros,
        temperatures=temperatures,
    )


def packed_size(lengths: np.ndarray, length: int, slices: int = 1) -> int | None:
    """Places for `score` to pack responses of `lengths` [P, G], at most `length` tokens, into.

    For each of `slices` equal slices of the prompts, and of each the rows that one device has. An
    eighth of all places or a multiple of it, so that few sizes are ever compiled; None where
    packing would save less than an eighth, or where a mesh cuts the tokens of a row.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["sequence"] > 1:
        return None
    parts = slices * row_groups(lengths.size // slices)
    places = lengths.size // parts * length
    eighth = -(-places // 8)
    size = -(-int(lengths.reshape(parts, -1).sum(axis=1).max()) // eighth) * eighth
    return None if size >= places else max(size, eighth)


class _Rows(NamedTuple):
    """What R rows keep from their first token to their last.

    `number` [D, R / D] of each in its group of the batch: a mesh has D devices or groups of them
    for the rows of a cache (`cache_groups`), and no row moves from one to another.
    """

    number: jax.Array
    key: jax.Array  # [R]
    limit: jax.Array  # [R], tokens
    temperature: jax.Array | None  # [R, 1], where prompts have their own

    @property
    def groups(self) -> int:
        return len(self.number)


class _Decoding(NamedTuple):
    """What a decode step of R rows carries over to the next."""

    step: jax.Array
    rows: _Rows
    status: jax.Array
    token: jax.Array
    cache: Cache
    outputs: dict[str, jax.Array]  # [T, R, …]
    streak: jax.Array | None  # as `sampling.repetition_stop` counts


def _begin(prompts, group, seeds, limits, rng, sampling, temperatures) -> _Rows:
    """All rows, in order."""
    batch, groups = prompts * group, cache_groups(prompts)
    fold_in = jax.vmap(jax.random.fold_in)
    prompt_keys = jnp.repeat(fold_in(jnp.broadcast_to(rng, prompts), seeds), group)
    keys = fold_in(prompt_keys, jnp.tile(jnp.arange(group), prompts))
    limits = jnp.minimum(limits.reshape(batch), sampling.max_new_tokens)
    tempered = None if temperatures is None else jnp.repeat(temperatures, group)[:, None]
    number = jnp.broadcast_to(jnp.arange(batch // groups), (groups, batch // groups))
    return _Rows(number, keys, limits, tempered)


def _group_sizes(shape: tuple[int, int], compactions: int) -> list[int]:
    """Rows of a group, and the halves that its running rows move into."""
    return [shape[1] >> i for i in range(compactions + 1) if shape[1] >> i]


def _more_than(rows: int, length: int, carry: _Decoding) -> jax.Array:
    """Whether steps are left, and a group has more running rows."""
    running = split_rows(carry.status == Status.PENDING, carry.rows.groups).sum(axis=1)
    return (carry.step < length) & (running.max() > rows)


def _compacted(carry: _Decoding, size: int, group: int) -> _Decoding:
    """`size` rows a group: the running ones, then ended ones; from then on each has its prompt."""
    rows, batch = carry.rows, len(carry.status)
    groups, before = rows.number.shape
    if size == before:
        return carry
    order = jnp.argsort(split_rows(carry.status != Status.PENDING, groups), axis=1, stable=True)
    order = order[:, :size]
    of_row = functools.partial(take_rows, rows=order)
    number = jnp.take_along_axis(rows.number, order, axis=1)
    shared = carry.cache.prompt is not None and len(carry.cache.prompt.lengths) < batch
    cache = carry.cache.take(order, number // group if shared else order)
    outputs = jax.tree.map(functools.partial(of_row, axis=1), carry.outputs)
    own = jax.tree.map(of_row, (rows.key, rows.limit, rows.temperature))
    status, token, streak = jax.tree.map(of_row, (carry.status, carry.token, carry.streak))
    return _Decoding(carry.step, _Rows(number, *own), status, token, cache, outputs, streak)


def _put(status: jax.Array, outputs: dict[str, jax.Array], carry: _Decoding):
    """The whole batch's status [B] and outputs [T, B, …] with those of the carried rows."""
    number, groups = carry.rows.number, carry.rows.groups

    def put(whole: jax.Array, part: jax.Array, axis: int) -> jax.Array:
        if part.shape == whole.shape:
            return part

        def of_group(whole, part, number):
            return whole.at[(slice(None),) * axis + (number,)].set(part)

        of_groups = jax.vmap(of_group, in_axes=(axis, axis, 0), out_axes=axis)
        parts = split_rows(whole, groups, axis), split_rows(part, groups, axis)
        return of_groups(*parts, number).reshape(whole.shape)

    outputs = jax.tree.map(functools.partial(put, axis=1), outputs, carry.outputs)
    return put(status, carry.status, 0), outputs


def score(
    model: Decoder, rollout: Rollout, temperature: float, packed: int | None = None
) -> dict[str, jax.Array]:
    """What the model says of a rollout's tokens, by the sampler's own path and differentiable.

    `temperature` is the sampler's, where the rollout does not hold each prompt's own. `packed` is
    the `packed_size` of the rollout, or None to read its padding too.

    Returns: `logprobs` and `entropy` [P, G, T] float32 (entropy of the full tempered softmax in
    nats), and the router statistics of the response tokens. Positions outside the mask hold values
    without meaning.
    """
    rows, group, length = rollout.tokens.shape
    cache, last = prefill(model, rollout.prompt_tokens, rollout.prompt_lengths)
    cache = cache.fork(group, slots=0)
    tokens = rollout.tokens.reshape(rows * group, length)
    inputs = jnp.concatenate([jnp.repeat(last, group)[:, None], tokens[:, :-1]], axis=1)
    segments = (jnp.arange(length) < rollout.lengths.reshape(-1, 1)).astype(jnp.int32)
    packing = None if packed is None else Packing.of(segments != 0, packed)
    hidden, _, statistics = model.hidden_states(
        inputs, segment_ids=segments, cache=cache, packing=packing
    )
    support = rollout.support
    support = None if support is None else support.reshape(rows * group, length, -1)
    tempered: float | jax.Array = temperature
    if rollout.temperatures is not None:
        tempered = jnp.repeat(rollout.temperatures, group * length).reshape(tokens.shape)
    if packing is None:
        logprobs, entropy = model.token_logprobs(hidden, tokens, support, tempered)
    else:
        support = None if support is None else packing.pack(support)
        if isinstance(tempered, jax.Array):
            tempered = jnp.where(packing.filled, packing.pack(tempered), 1.0)
        packed_tokens = packing.pack(tokens)
        logprobs, entropy = model.token_logprobs(hidden, packed_tokens, support, tempered)
        logprobs, entropy = packing.unpack(logprobs), packing.unpack(entropy)
    shape = (rows, group, length)
    return {"logprobs": logprobs.reshape(shape), "entropy": entropy.reshape(shape), **statistics}
