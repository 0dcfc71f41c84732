"""Generation token by token for a conversation, whose cache is kept from turn to turn.

    generate:      prefill(prompt[:-1]), then a loop of decode steps inside one program
    Conversation:  the same two calls of the decoder and the same `draw`, with the loop on the host

A token reaches the host when it is drawn. A turn reads only what the cache does not hold yet, in
pieces whose widths are powers of two: one small program for each width, and one for decoding.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.errors import UserError
from mmrl.models import Cache, Decoder, DecoderConfig
from mmrl.rollout.sampling import SamplingConfig, draw

SMALLEST_PIECE, LARGEST_PIECE = 16, 512

Ending = Literal["stop", "length", "context"]


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
        self._layers = _unstack(self._graphdef, self._params)
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
        self._read(tokens[:-1])
        key = jax.random.fold_in(jax.random.fold_in(rng, 0), 0)
        # What the compiled step does not look at is left out of its signature.
        settings = dataclasses.replace(sampling, group_size=1, max_new_tokens=1, stop_ids=())
        token = tokens[-1]
        for step in range(sampling.max_new_tokens):
            if len(self.tokens) == self.context:
                self.ending = "context"
                return
            drawn, self._cache = _decode(
                self._graphdef, self._params, self._layers, self._cache,
                np.int32(token), key, np.int32(step), settings,
            )  # fmt: skip
            self.tokens.append(token)
            token = int(drawn)
            if token in sampling.stop_ids:
                self.ending = "stop"
            elif step + 1 == sampling.max_new_tokens:
                self.ending = "length"
            yield token
            if self.ending:
                return

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
    return Cache.create(config, 1, slots)


@functools.partial(jax.jit, static_argnames="graphdef")
def _unstack(graphdef, params):
    return nnx.merge(graphdef, params).unstacked()


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="cache")
def _prefill(graphdef, params, cache: Cache, tokens: jax.Array, length: jax.Array) -> Cache:
    """Reads the first `length` of tokens [1, T]; the slots of the padding are written again."""
    valid = jnp.arange(tokens.shape[1]) < length
    _, after, _ = nnx.merge(graphdef, params).hidden_states(
        tokens, segment_ids=valid[None].astype(jnp.int32), cache=cache
    )
    return dataclasses.replace(after, slot=cache.slot + length)


@functools.partial(jax.jit, static_argnames=("graphdef", "settings"), donate_argnames="cache")
def _decode(graphdef, params, layers, cache: Cache, token, key, step, settings: SamplingConfig):
    """Reads one token and draws the next: (token [], cache)."""
    model = nnx.merge(graphdef, params)
    logits, cache = model(token[None, None], cache=cache, layers=layers)
    drawn, _, _ = draw(logits[:, 0], jax.random.fold_in(key, step)[None], settings)
    return drawn[0], cache
