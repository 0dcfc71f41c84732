"""Lightning attention in chunks of dense products, for every platform XLA compiles for.

One chunk loop serves the forward pass and all three input gradients. With decay weights
W_ij = lam^(i-j) for j <= i (0 otherwise, and 0 across segments) a chunk computes

    out = (W * (q k^T)) v + read * (q S)        S' = (1 + change) * S + k^T (write * v)

and the gradients have the same form, dq in the same direction, dk and dv backwards in time:

    dq = (W   * (do v^T)) k  + read  * (do S^T)
    dk = (W^T * (v do^T)) q  + write * (v dS'^T)
    dv = (W^T * (k q^T))  do + write * (k dS')        dS = (1 + change) * dS' + q^T (read * do)

Each direction carries its own state along, so no chunk's state is ever stored. The state moves by
its `change` = lam^C - 1, not by a factor: near 1 the factor's rounding would add up over chunks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

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
    return _all_chunks(q, k, v, slopes, state, _positions(segment_ids))


def _forward(*inputs):
    return _attention(*inputs), inputs


def _backward(inputs, cotangents):
    q, k, v, slopes, state, segment_ids = inputs
    dout, dstate = cotangents
    positions = _positions(segment_ids)
    dq, _ = _all_chunks(dout, v, k, slopes, state.mT, positions)
    dk, _ = _all_chunks(v, dout, q, slopes, dstate.mT, positions, reverse=True)
    dv, dstate = _all_chunks(k, q, dout, slopes, dstate, positions, reverse=True)
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


class _Positions(NamedTuple):
    """Where the T + 1 gaps around the tokens stand: gap t is before token t, gap t + 1 after it."""

    tokens: jax.Array  # int [B, T + 1], valid tokens so far; padding does not add to it
    runs: jax.Array  # int [B, T + 1], changes of segment so far; equal where a state is shared

    def window(self, start: jax.Array | int, size: int) -> "_Positions":
        return _Positions(*(_window(x, start, size + 1) for x in self))

    def valid(self) -> jax.Array:
        return self.tokens[:, 1:] > self.tokens[:, :-1]


def _positions(segment_ids: jax.Array | None) -> _Positions | None:
    if segment_ids is None:
        return None
    valid = segment_ids != 0
    time = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = lax.cummax(jnp.where(valid, time, -1), axis=1)
    previous = jnp.pad(latest, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    previous_id = jnp.take_along_axis(segment_ids, jnp.maximum(previous, 0), axis=1)
    change = valid & (previous >= 0) & (previous_id != segment_ids)
    counts = (jnp.cumsum(x, axis=1, dtype=jnp.int32) for x in (valid, change))
    return _Positions(*(jnp.pad(x, ((0, 0), (1, 0))) for x in counts))


def _unbroken(size: int) -> _Positions:
    """The positions of any chunk of one segment without padding, for a batch of 1."""
    tokens = jnp.arange(size + 1)[None]
    return _Positions(tokens, jnp.zeros_like(tokens))


class _Decay(NamedTuple):
    """Decay weights in a chunk of C tokens; b is B, or 1 where all rows share them."""

    intra: jax.Array  # [b, H, C, C], of token j in the output of token i
    read: jax.Array  # [b, H, C, 1], of the incoming state in the output of token i
    write: jax.Array  # [b, H, C, 1], of token j in the outgoing state
    change: jax.Array  # [b, H, 1, 1], of the incoming state in the outgoing one, less 1


def _decay(slopes: jax.Array, positions: _Positions, reverse: bool) -> _Decay:
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


def _one_chunk(q, k, v, state, decay):
    """q, v [B, H, C, D] and k [B, H, D, C] to out [B, H, C, D] and the next state."""
    scores = decay.intra * _einsum("bhid,bhdj->bhij", q, k)
    out = _einsum("bhij,bhje->bhie", scores, v)
    out += decay.read * _einsum("bhid,bhde->bhie", q, state)
    state += decay.change * state + _einsum("bhdj,bhje->bhde", k, decay.write * v)
    return out, state


def _chunk_length() -> int:
    """Tokens per chunk: longer ones fill a matrix unit, short ones stay in a CPU's cache."""
    return 16 if jax.default_backend() == "cpu" else 128


def _all_chunks(q, k, v, slopes, state, positions, reverse=False):
    """Chunk after chunk over [B, T, H, D]; `reverse` runs time from the last token to the first."""
    length = q.shape[1]
    size = min(length, _chunk_length())
    full, tail = divmod(length, size)
    blocks = [(0, full, size)] + ([(full * size, 1, tail)] if tail else [])
    out = q
    for first, number, size in blocks[::-1] if reverse else blocks:
        shared = _decay(slopes, _unbroken(size), reverse) if positions is None else None

        def step(index, carry, first=first, number=number, size=size, shared=shared):
            # The output overwrites the queries already read: no second buffer, nothing to clear.
            out, state = carry
            start = first + size * (number - 1 - index if reverse else index)
            chunk = [_window(x, start, size) for x in (out, k, v)]
            decay = shared
            if positions is not None:
                around = positions.window(start, size)
                chunk = [jnp.where(around.valid()[:, :, None, None], x, 0) for x in chunk]
                decay = _decay(slopes, around, reverse)
            chunk_q, chunk_k, chunk_v = (jnp.swapaxes(x.astype(state.dtype), 1, 2) for x in chunk)
            new, state = _one_chunk(chunk_q, chunk_k.mT, chunk_v, state, decay)
            new = jnp.swapaxes(new, 1, 2).astype(out.dtype)
            return lax.dynamic_update_slice_in_dim(out, new, start, axis=1), state

        out, state = lax.fori_loop(0, number, step, (out, state))
    return out, state


def _window(x: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis=1)
