"""Lightning attention in chunks of dense products, for every platform XLA compiles for.

One chunk loop serves the forward pass and all three input gradients. With decay weights
W_ij = lam^(i-j) for j <= i (0 otherwise, and 0 across segments) a chunk computes

    out = (W * (q k^T)) v + read * (q S)        S' = (1 + change) * S + k^T (write * v)

and the gradients have the same form, dq in the same direction, dk and dv backwards in time:

    dq = (W   * (do v^T)) k  + read  * (do S^T)
    dk = (W^T * (v do^T)) q  + write * (v dS'^T)
    dv = (W^T * (k q^T))  do + write * (k dS')        dS = (1 + change) * dS' + q^T (read * do)

Each direction carries its own state along, which dk and dv share, so no chunk's state is ever
stored. An output takes the place of the array that stands first in its line. The state moves by
its `change` = lam^C - 1, not by a factor: near 1 the factor's rounding would add up over chunks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import target

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    initial_state: jax.Array,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Block form of the recurrence of `reference.lightning_attention`: same arguments and results.

    Lightning Attention-2 (arXiv 2401.04658), algorithms 1 and 2. Time and memory are linear in T,
    the backward pass keeps the inputs only, and the slopes have no gradient.
    """
    return _attention(q, k, v, slopes.astype(initial_state.dtype), initial_state, segment_ids)


@jax.custom_vjp
def _attention(q, k, v, slopes, state, segment_ids):
    if q.shape[1] == 1:
        return _one_token(q, k, v, slopes, state, segment_ids)
    run = _Run(slopes, segment_positions(segment_ids))
    (out,), state = _all_chunks(_chunk, run, (q,), (k, v), state)
    return out, state


def _forward(*inputs):
    return _attention(*inputs), inputs


def _backward(inputs, cotangents):
    q, k, v, slopes, state, segment_ids = inputs
    dout, dstate = cotangents
    run = _Run(slopes, segment_positions(segment_ids))
    (dq,), _ = _all_chunks(_chunk, run, (dout,), (v, k), state.mT)
    run = run._replace(reverse=True)
    (dk, dv), dstate = _all_chunks(_chunk_gradients, run, (v, k), (q, dout), dstate)
    return dq, dk, dv, None, dstate, None


_attention.defvjp(_forward, _backward)


def _one_token(q, k, v, slopes, state, segment_ids):
    """The recurrence itself, T = 1; reading the new state lets XLA update the old one in place."""
    change = jnp.expm1(-slopes)[:, None, None]
    query, key, value = (x[:, 0].astype(state.dtype) for x in (q, k, v))
    if segment_ids is not None:
        valid = (segment_ids != 0)[:, :, None]
        query, key, value = (jnp.where(valid, x, 0) for x in (query, key, value))
        change = jnp.where(valid[..., None], change, 0)
    state += change * state + key[..., :, None] * value[..., None, :]
    out = _einsum("bhd,bhde->bhe", query, state)
    return out[:, None].astype(q.dtype), state


class Positions(NamedTuple):
    """Where the T + 1 gaps around the tokens stand: gap t is before token t, gap t + 1 after it."""

    tokens: jax.Array  # int [B, T + 1], valid tokens so far; padding does not add to it
    runs: jax.Array  # int [B, T + 1], changes of segment so far; equal where a state is shared

    def window(self, start: jax.Array | int, size: int) -> "Positions":
        return Positions(*(_window(x, start, size + 1) for x in self))

    def valid(self) -> jax.Array:
        return self.tokens[:, 1:] > self.tokens[:, :-1]


def segment_positions(segment_ids: jax.Array | None) -> Positions | None:
    """The positions of rows with segment ids [B, T], 0 for padding; None for None."""
    if segment_ids is None:
        return None
    valid = segment_ids != 0
    time = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = lax.cummax(jnp.where(valid, time, -1), axis=1)
    previous = jnp.pad(latest, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    previous_id = jnp.take_along_axis(segment_ids, jnp.maximum(previous, 0), axis=1)
    change = valid & (previous >= 0) & (previous_id != segment_ids)
    counts = (jnp.cumsum(x, axis=1, dtype=jnp.int32) for x in (valid, change))
    return Positions(*(jnp.pad(x, ((0, 0), (1, 0))) for x in counts))


def _unbroken(size: int) -> Positions:
    """The positions of any chunk of one segment without padding, for a batch of 1."""
    tokens = jnp.arange(size + 1)[None]
    return Positions(tokens, jnp.zeros_like(tokens))


class _Decay(NamedTuple):
    """Decay weights in a chunk of C tokens; b is B, or 1 where all rows share them."""

    intra: jax.Array  # [b, H, C, C], of token j in the output of token i
    read: jax.Array  # [b, H, C, 1], of the incoming state in the output of token i
    write: jax.Array  # [b, H, C, 1], of token j in the outgoing state
    change: jax.Array  # [b, H, 1, 1], of the incoming state in the outgoing one, less 1


def _decay(slopes: jax.Array, positions: Positions, reverse: bool) -> _Decay:
    """Decay weights of the chunk between the C + 1 positions; no exponent is above 0."""
    tokens, runs = positions
    before, token, after = slice(0, 1), slice(1, None), slice(-1, None)

    def weight(one: slice, other: slice, exp=jnp.exp, unlinked: int = 0) -> jax.Array:
        distance = jnp.abs(tokens[:, one, None] - tokens[:, None, other])[:, None]
        linked = (runs[:, one, None] == runs[:, None, other])[:, None]
        return jnp.where(linked, exp(-slopes[:, None, None] * distance), unlinked)

    intra = (jnp.triu if reverse else jnp.tril)(weight(token, token))
    read, write = weight(token, before), weight(token, after)
    if reverse:
        read, write = write, read
    return _Decay(intra, read, write, weight(after, before, jnp.expm1, -1))


def _chunk(q, k, v, state, decay):
    """Arrays [B, H, C, D]: the outputs, as a tuple of one, and the next state."""
    out = _attend(q, k.mT, v, state, decay)
    return (out,), _moved_on(k.mT, v, state, decay)


def _chunk_gradients(v, k, q, dout, dstate, decay):
    """dk and dv of a chunk, and the gradient of the state before it."""
    dk = _attend(v, dout.mT, q, dstate.mT, decay)
    dv = _attend(k, q.mT, dout, dstate, decay)
    return (dk, dv), _moved_on(q.mT, dout, dstate, decay)


def _attend(q, k, v, state, decay):
    """q, v [B, H, C, D], k [B, H, D, C] and the state that the chunk reads to out [B, H, C, D]."""
    scores = decay.intra * _einsum("bhid,bhdj->bhij", q, k)
    out = _einsum("bhij,bhje->bhie", scores, v)
    return out + decay.read * _einsum("bhid,bhde->bhie", q, state)


def _moved_on(k, v, state, decay):
    return state + (decay.change * state + _einsum("bhdj,bhje->bhde", k, decay.write * v))


def _chunk_length() -> int:
    """Tokens per chunk: longer ones fill a matrix unit, short ones stay in a CPU's cache."""
    return 32 if target.platform() == "cpu" else 128


class _Run(NamedTuple):
    """One direction through the rows."""

    slopes: jax.Array
    positions: Positions | None
    reverse: bool = False  # from the last token to the first


def _all_chunks(body, run, replaced, read, state):
    """`body` on chunk after chunk of arrays [B, T, H, D]; its outputs take the place of `replaced`.

    So there is no second buffer and nothing to clear: a chunk is not read again.
    """
    slopes, positions, reverse = run
    length = replaced[0].shape[1]
    size = min(length, _chunk_length())
    full, tail = divmod(length, size)
    blocks = [(0, full, size)] + ([(full * size, 1, tail)] if tail else [])
    for first, number, size in blocks[::-1] if reverse else blocks:
        shared = _decay(slopes, _unbroken(size), reverse) if positions is None else None

        def step(index, carry, first=first, number=number, size=size, shared=shared):
            replaced, state = carry
            start = first + size * (number - 1 - index if reverse else index)
            chunk = [_window(x, start, size) for x in (*replaced, *read)]
            decay = shared
            if positions is not None:
                around = positions.window(start, size)
                chunk = [jnp.where(around.valid()[:, :, None, None], x, 0) for x in chunk]
                decay = _decay(slopes, around, reverse)
            chunk = (jnp.swapaxes(x.astype(state.dtype), 1, 2) for x in chunk)
            outs, state = body(*chunk, state, decay)
            return tuple(_replace(x, start, out) for x, out in zip(replaced, outs)), state

        replaced, state = lax.fori_loop(0, number, step, (replaced, state))
    return replaced, state


def _window(x: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _replace(x: jax.Array, start: jax.Array, chunk: jax.Array) -> jax.Array:
    """x [B, T, H, D] with a chunk [B, H, C, D] of it replaced."""
    chunk = jnp.swapaxes(chunk, 1, 2).astype(x.dtype)
    return lax.dynamic_update_slice_in_dim(x, chunk, start, axis=1)
