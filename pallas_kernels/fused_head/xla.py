"""The fused head in pieces of the vocabulary, for every platform XLA compiles for.

tokamax's linear_softmax_cross_entropy_loss (783ea95) returns one summed loss: no value per token,
no entropy, temperature, support or float32 products, and its "xla" form holds all logits.

A piece holds every n-th row of the head, so that a head sharded over its vocabulary stays where it
is. The forward pass joins the pieces' logits z = hidden head^T / temperature as they come:

    lse = log sum_i exp(lse_i)       w_i = exp(lse_i - lse)       H = sum_i w_i (H_i - log w_i)

with lse_i and H_i the log-sum-exp and the entropy of piece i.

The backward pass computes each piece's logits again, p = exp(z - lse), and with the gradients a of
the log-probability and b of the entropy

    dz_j = a ([j = token] - p_j) - b p_j (log p_j + H)    dhidden += dz head    dhead = dz^T hidden

divided by the temperature. Over a support, the p in the first term is that of its ids alone.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

AxisName = str | tuple[str, ...]

# Up to this many logits (64 MiB) are one piece, kept for the backward pass.
_ONE_PIECE = 2**24
# Rows of the head in a piece: products wide enough for any matrix unit, logits smaller than hidden.
_ROWS = (2048, 8192)
_NEVER = -1e30  # the logit of a row that pads the head


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    support: jax.Array | None,
    temperature: float | jax.Array,
    axis_name: AxisName | None = None,
    pieces: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Same arguments and results as `api.token_logprobs`; the temperature has no gradient.

    `pieces` is the number of pieces of the vocabulary. Beside arguments and gradients, no more than
    the logits of one piece are alive.
    """
    if pieces is None:
        pieces = 1 if tokens.size * len(head) <= _ONE_PIECE else _number_of_pieces(len(head))
    return _token_logprobs(pieces, axis_name, hidden, head, tokens, support, temperature)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_logprobs(pieces, axis_name, *inputs):
    return _forward(pieces, axis_name, *inputs)[0]


def _forward(pieces, axis_name, hidden, head, tokens, support, temperature):
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    split, ids = _split(head, pieces), _own(_ids(tokens, support), head, axis_name)

    def add_piece(index, carry):
        sums, _ = carry
        logits = _logits(hidden, _piece(split, index), temperature)
        if split.shape[0] * pieces > len(head):
            rows = index + pieces * jnp.arange(split.shape[0])
            logits = jnp.where(rows < len(head), logits, _NEVER)
        return _add(sums, logits, _places(ids, split, index)), logits if pieces == 1 else None

    zero = jnp.zeros_like(hidden[:, 0], dtype)  # zeros_like: keeps the sharding over tokens
    none = jnp.full_like(ids, -jnp.inf, dtype)
    sums = _Sums(zero + jnp.finfo(dtype).min, zero, none)
    sums, logits = _each(pieces, add_piece, (sums, None))
    lse, entropy, chosen = sums if axis_name is None else _join(sums, axis_name)
    chosen, kept, normaliser = chosen[:, 0], chosen[:, 1:], lse
    if support is not None:
        normaliser = jnp.where(_untruncated(support), lse, jax.nn.logsumexp(kept, axis=1))
    kept = jnp.exp(kept - normaliser[:, None])
    residuals = (hidden, head, tokens, support, temperature, logits, lse, entropy, kept)
    return (chosen - normaliser, entropy), residuals


def _backward(pieces, axis_name, residuals, cotangents):
    hidden, head, tokens, support, temperature, saved, lse, entropy, kept = residuals
    if axis_name is not None:  # what differentiating the sums over the axis would do
        cotangents = lax.psum(cotangents, axis_name)
    own_tokens = _own(tokens, head, axis_name)
    own_support = None if support is None else _own(support, head, axis_name)
    # The barrier hides a constant 0 for the entropy, which would make XLA:CPU fuse far worse.
    of_logprob, of_entropy = (x[:, None] for x in lax.optimization_barrier(cotangents))
    dtype, split, of_all = lse.dtype, _split(head, pieces), of_logprob
    if support is not None:
        of_all = jnp.where(_untruncated(support)[:, None], of_logprob, 0)
    of_all += of_entropy * entropy[:, None]

    def add_piece(index, carry):
        dhidden, dhead = carry
        rows = _piece(split, index)
        logits = _logits(hidden, rows, temperature) if saved is None else saved
        logp = logits - lse[:, None]
        token = _places(own_tokens, split, index)[:, None] == jnp.arange(logits.shape[1])
        dlogits = jnp.where(token, of_logprob, 0) - jnp.exp(logp) * (of_all + of_entropy * logp)
        if support is not None:
            places = jnp.arange(len(support))[:, None], _places(own_support, split, index)
            of_kept = jnp.where(_untruncated(support)[:, None], 0, of_logprob) * kept
            dlogits = dlogits.at[places].add(-of_kept, mode="drop")
        dlogits /= temperature
        drows = _einsum("nv,nm->vm", dlogits, hidden.astype(dtype))
        dhidden += _einsum("nv,vm->nm", dlogits, rows.astype(dtype))
        return dhidden, lax.dynamic_update_index_in_dim(dhead, drows, index, axis=1)

    start = jnp.zeros_like(hidden, dtype), jnp.zeros_like(split, dtype)
    dhidden, dhead = _each(pieces, add_piece, start)
    dhead = dhead.reshape(-1, head.shape[1])[: len(head)]
    return dhidden.astype(hidden.dtype), dhead.astype(head.dtype), None, None, None


_token_logprobs.defvjp(_forward, _backward)


class _Sums(NamedTuple):
    """What the pieces so far amount to."""

    lse: jax.Array  # [N]
    entropy: jax.Array  # [N]
    chosen: jax.Array  # [N, 1 + K], z at the token and the support; -inf where not met yet


def _add(sums: _Sums, logits: jax.Array, places: jax.Array) -> _Sums:
    """Adds a piece's logits [N, R]; `places` [N, 1 + K] are those of the ids, R for elsewhere."""
    of_piece = jax.nn.logsumexp(logits, axis=1)
    logp = logits - of_piece[:, None]
    lse = jnp.logaddexp(sums.lse, of_piece)
    old, new = sums.lse - lse, of_piece - lse
    entropy = jnp.exp(old) * (sums.entropy - old)
    entropy -= jnp.exp(new) * (jnp.sum(jnp.exp(logp) * logp, axis=1) + new)
    here = jnp.take_along_axis(logits, places, axis=1, mode="fill", fill_value=-jnp.inf)
    return _Sums(lse, entropy, jnp.maximum(sums.chosen, here))


def _join(sums: _Sums, axis_name: AxisName) -> _Sums:
    """The sums of all devices of a mesh axis, each over its own rows of the head."""
    greatest = lax.pmax(sums.lse, axis_name)
    lse = greatest + jnp.log(lax.psum(jnp.exp(sums.lse - greatest), axis_name))
    log_weight = sums.lse - lse
    entropy = lax.psum(jnp.exp(log_weight) * (sums.entropy - log_weight), axis_name)
    return _Sums(lse, entropy, lax.pmax(sums.chosen, axis_name))


def _own(ids: jax.Array, head: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Ids counted from this device's first row of the head, -1 for those of other devices."""
    if axis_name is None:
        return ids
    own = ids - lax.axis_index(axis_name) * len(head)
    return jnp.where((ids >= 0) & (own >= 0) & (own < len(head)), own, -1)


def _ids(tokens: jax.Array, support: jax.Array | None) -> jax.Array:
    """[N, 1 + K], the token and its support."""
    parts = [tokens[:, None]] if support is None else [tokens[:, None], support]
    return jnp.concatenate(parts, axis=1)


def _logits(hidden: jax.Array, rows: jax.Array, temperature) -> jax.Array:
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return _einsum("nm,vm->nv", hidden.astype(dtype), rows.astype(dtype)) / temperature


def _untruncated(support: jax.Array) -> jax.Array:
    return jnp.all(support < 0, axis=1)


def _number_of_pieces(rows: int) -> int:
    """A divisor of `rows` that leaves pieces of a good size, divisible by a large power of two."""
    smallest, largest = _ROWS
    sizes = [n for n in range(smallest, largest + 1) if rows % n == 0]
    size = max(sizes, key=lambda n: (n & -n, -n), default=largest)
    return -(-rows // size)


def _split(head: jax.Array, pieces: int) -> jax.Array:
    """[V, M] to [R, pieces, M], padded where the pieces do not divide V."""
    head = jnp.pad(head, ((0, -len(head) % pieces), (0, 0)))
    return head.reshape(-1, pieces, head.shape[1])


def _piece(split: jax.Array, index: jax.Array | int) -> jax.Array:
    return lax.dynamic_index_in_dim(split, index, axis=1, keepdims=False)


def _places(ids: jax.Array, split: jax.Array, index: jax.Array | int) -> jax.Array:
    """Where in piece `index` the ids stand, and R for those that are not in it."""
    size, pieces, _ = split.shape
    return jnp.where((ids >= 0) & (ids % pieces == index), ids // pieces, size)


def _each(pieces: int, body, carry):
    return body(0, carry) if pieces == 1 else lax.fori_loop(0, pieces, body, carry)
