"""Generation token by token for a conversation, whose cache is kept from turn to turn.

    generate:      prefill(prompt[:-1]), then a loop of decode steps inside one program
    Conversation:  the same two calls of the decoder and the same `draw`, with the loop on the host

A token reaches the host when it is drawn. A turn reads only what the cache does not hold yet, in
pieces whose widths are powers of two: one small program for each width, and one for decoding, which
is compiled in the background while the first prompt is read.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.compilation import model_jit
from mmrl.errors import UserError
from mmrl.models import Cache, Decoder, DecoderConfig
from mmrl.models.decoder import LoopWeights, in_compute_dtype
from mmrl.rollout.rows import loop_weights
from mmrl.rollout.sampling import SamplingConfig, draw

SMALLEST_PIECE, LARGEST_PIECE = 16, 512

Ending = Literal["stop", "length", "context"]
Program = Callable[..., Any]

_COMPILER = ThreadPoolExecutor(1, "compile")
_PROGRAMS: dict[tuple, Future[Program]] = {}  # by graph, context and settings, of one device


class Conversation:
    """A model, a cache with room for `context` tokens, and the `tokens` that it has read.

    `ending` says why the last response ended: "stop" at a stop token, "length" at its limit of
    tokens, "context" where the cache is full, and None while it runs or where it was left.
    """

    def __init__(self, model: Decoder, context: int):
        if context < 2:
            raise UserError(f"the context must hold at least 2 tokens, got {context}")
        self.context = context
        self.ending: Ending | None = None
        self._config = model.config
        self._graphdef, self._params = nnx.split(model)
        self.reset()

    def reset(self) -> None:
        """Forgets all tokens."""
        self.tokens: list[int] = []
        self._cache = _empty_cache(self._config, self.context)

    def respond(
        self, tokens: Sequence[int], sampling: SamplingConfig, rng: jax.Array
    ) -> Iterator[int]:
        """Yields the tokens of a response to `tokens`, the whole conversation so far.

        Where `tokens` begins with what the cache holds, only the rest is read; else all of it is
        read again, since the states of lightning layers cannot go back. A stop token is yielded and
        ends the response. The caller may stop at any token: what follows continues from there. The
        response is that of `generate` for one prompt with seed 0 and the same `rng`.

        Raises UserError for an empty conversation, or one that leaves no room for a response.
        """
        if not 0 < len(tokens) <= self.context:
            raise UserError(
                f"the conversation has {len(tokens)} tokens and the context holds {self.context}: "
                "start a new one, or raise the context"
            )
        self.ending = None
        return self._respond(list(tokens), sampling, rng)

    def _respond(
        self, tokens: list[int], sampling: SamplingConfig, rng: jax.Array
    ) -> Iterator[int]:
        key = jax.random.fold_in(jax.random.fold_in(rng, 0), 0)
        decode = self._decode_program(key, sampling)
        self._read(tokens[:-1])
        layers, token = self._layers, tokens[-1]
        for step in range(sampling.max_new_tokens):
            if len(self.tokens) == self.context:
                self.ending = "context"
                return
            drawn, self._cache = decode.result()(
                self._params, layers, self._cache, np.int32(token), key, np.int32(step)
            )
            self.tokens.append(token)
            token = int(drawn)
            if token in sampling.stop_ids:
                self.ending = "stop"
            elif step + 1 == sampling.max_new_tokens:
                self.ending = "length"
            yield token
            if self.ending:
                return

    def _decode_program(self, key: jax.Array, sampling: SamplingConfig) -> "Future[Program]":
        """`_decode` as a function of its arrays; a thread compiles it the first time."""
        # What the step does not look at is left out of what it is compiled for.
        settings = dataclasses.replace(sampling, group_size=1, max_new_tokens=1, stop_ids=())
        signature = (self._graphdef, self.context, settings)
        if jax.sharding.get_abstract_mesh().size > 1:
            # How the arrays will be sharded is known when they are there.
            program: Future[Program] = Future()
            program.set_result(functools.partial(_decode, self._graphdef, settings=settings))
            return program
        if signature not in _PROGRAMS:
            arrays = (self._params, self._layer_shapes, self._cache)
            number = np.int32(0)
            lowered = _decode.lower(self._graphdef, *arrays, number, key, number, settings=settings)
            _PROGRAMS[signature] = _COMPILER.submit(lowered.compile)
        return _PROGRAMS[signature]

    @functools.cached_property
    def _layer_shapes(self) -> LoopWeights | None:
        return jax.eval_shape(nnx.merge(self._graphdef, self._params).loop_weights)

    @functools.cached_property
    def _layers(self) -> LoopWeights | None:
        """As `Decoder.loop_weights`, by a program that is compiled once for all layers of a run."""
        if not Decoder.unstacks(self._config):
            return loop_weights(self._graphdef, self._params, "train")
        model = nnx.merge(self._graphdef, self._params)
        return [
            [
                _layer(self._config, nnx.state(run), np.int32(i))
                for i in range(self._config.num_groups * length)
            ]
            for run, (_, length) in zip(model.runs, self._config.runs, strict=True)
        ]

    def _read(self, tokens: list[int]) -> None:
        """Brings the cache to exactly `tokens`."""
        if tokens[: len(self.tokens)] != self.tokens:
            self.reset()
        while len(self.tokens) < len(tokens):
            rest = tokens[len(self.tokens) :]
            width = piece_width(len(rest), self.context - len(self.tokens))
            piece = rest[:width]
            padded = np.zeros((1, width), np.int32)
            padded[0, : len(piece)] = piece
            self._cache = _prefill(
                self._graphdef, self._params, self._cache, padded, np.int32(len(piece))
            )
            self.tokens += piece


def piece_width(tokens: int, room: int) -> int:
    """Width of the next piece of a prompt: a power of two that fits into the `room`, in slots.

    The smallest that holds all `tokens`, from 16 to 512; at the end of the context, where its
    padding would not fit, the largest without padding.
    """
    width = min(max(SMALLEST_PIECE, 1 << (tokens - 1).bit_length()), LARGEST_PIECE)
    return width if width <= room else 1 << (min(tokens, room).bit_length() - 1)


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def _empty_cache(config: DecoderConfig, slots: int) -> Cache:
    """An empty cache of one row; compiled, so that each of its arrays has memory to donate."""
    cache = Cache.create(config, 1, slots, independent=True)
    return Decoder.cache_of_loop(config, cache)


@functools.partial(jax.jit, static_argnames="config")
def _layer(config: DecoderConfig, state: nnx.State, index: jax.Array) -> nnx.State:
    """Layer `index` of the stacked weights of a run, in the compute dtype."""
    layer = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), state)
    return in_compute_dtype(config, layer)


@functools.partial(model_jit, static_argnames="graphdef", donate_argnames="cache")
def _prefill(graphdef, params, cache: Cache, tokens: jax.Array, length: jax.Array) -> Cache:
    """Reads the first `length` of tokens [1, T]."""
    valid = jnp.arange(tokens.shape[1]) < length
    return nnx.merge(graphdef, params).hidden_states(
        tokens, segment_ids=valid[None].astype(jnp.int32), cache=cache
    )[1]


@functools.partial(model_jit, static_argnames=("graphdef", "settings"), donate_argnames="cache")
def _decode(graphdef, params, layers, cache: Cache, token, key, step, *, settings: SamplingConfig):
    """Reads one token and draws the next: (token [], cache)."""
    model = nnx.merge(graphdef, params)
    logits, cache = model(token[None, None], cache=cache, layers=layers)
    drawn, _, _ = draw(logits[:, 0], jax.random.fold_in(key, step)[None], settings)
    return drawn[0], cache
