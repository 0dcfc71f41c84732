"""Softmax attention in plain XLA: one block, or blocks with an online softmax.

Inside this file the T queries of the G samples of a prompt and of the heads that share a kv head
are one axis of rows: q is [b, h, R, D] with R = T * G * (H / Hkv), beside k, v [b, h, S, D] as
the cache holds them, b = Bk and h = Hkv.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import target
from pallas_kernels.softmax_attention.blocks import (
    GPU_SLOTS,
    Labels,
    block_index,
    block_sizes,
    first_slot,
    from_grid,
    most_scores,
    scan_rows,
)

FEW_ROWS = 32  # at most this many rows: the keys, not the scores, are the larger array
FEW_ROWS_SLOTS = 256  # slots of a block then: keys and values that the caches of a CPU hold
GPU_BLOCKS = 8  # at most so many on a GPU, which waits for the host after each
COPIED = 3  # what a slot of a block, which XLA's CPU compiler copies, costs over one read in place
DENSE_SCORES = 1 << 22  # at most this many scores are computed in one block

MASKED = float(jnp.finfo(jnp.float32).min)  # finite, so that an empty row gives 0 and not nan


def softmax_attention_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    scale: float,
    layer: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and results as in `softmax_attention`."""
    stacked = layer is not None
    (batch, time, heads, depth), (kv_batch, kv_heads) = q.shape, k.shape[stacked : stacked + 2]
    split = (kv_batch, batch // kv_batch, time, kv_heads, heads // kv_heads)

    def of_rows(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x.reshape(split[:3]), 1, 2)[..., None]
        return jnp.broadcast_to(x, (*x.shape[:3], split[4])).reshape(kv_batch, -1)

    row_segments = None if q_segment_ids is None else of_rows(q_segment_ids)
    rows = Labels(of_rows(q_positions), row_segments)
    slots = Labels(kv_positions, kv_segment_ids)
    folded = q.reshape(*split, depth).transpose(0, 3, 2, 1, 4, 5)
    folded = folded.reshape(kv_batch, kv_heads, -1, depth)
    if folded.shape[2] <= FEW_ROWS:
        out, lse = _attend_cache(folded, k, v, layer, rows, slots, scale)
    else:
        k, v = (x[layer] for x in (k, v)) if stacked else (k, v)
        out, lse = _attend(folded, k, v, rows, slots, scale)

    def unfold(x: jax.Array) -> jax.Array:
        x = x.reshape(kv_batch, kv_heads, time, split[1], split[4], -1)
        return x.transpose(0, 3, 2, 1, 4, 5).reshape(batch, time, heads, -1)

    return unfold(out), unfold(lse)[..., 0]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, rows: Labels, slots: Labels, scale: float
) -> tuple[jax.Array, jax.Array]:
    """out [b, h, R, D] in q.dtype and lse [b, h, R] in float32."""
    attend = _attend_dense if _fits_one_block(q, k) else _attend_blocks
    out, lse = attend(q, k, v, rows, slots, scale)
    return out.astype(q.dtype), lse


def _attend_forward(q, k, v, rows, slots, scale):
    # Named for what rematerialises a caller: the gradient needs both.
    out, lse = checkpoint_name(_attend(q, k, v, rows, slots, scale), "attention")
    return (out, lse), (q, k, v, rows, slots, out, lse)


def _attend_backward(scale, residuals, cotangents):
    q, k, v, rows, slots, out, lse = residuals
    out_bar, lse_bar = cotangents
    # With p = exp(score - lse): dL/dscore = p (out_bar . v - out_bar . out + lse_bar).
    shift = lse_bar - (out_bar.astype(jnp.float32) * out).sum(-1)
    gradient = _dense_gradient if _fits_one_block(q, k) else _blocks_gradient
    dq, dk, dv = gradient(q, k, v, rows, slots, out_bar, lse, shift, scale)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _fits_one_block(q: jax.Array, k: jax.Array) -> bool:
    most = most_scores() if target.platform() == "gpu" else DENSE_SCORES
    return q[..., 0].size * k.shape[2] <= most


# One block.


def _visible(rows: Labels, slots: Labels) -> jax.Array:
    """[b, 1, R, S]: whether a row sees a slot."""
    positions = slots.positions[:, None]
    visible = (positions >= 0) & (positions <= rows.positions[..., None])
    if rows.segments is not None and slots.segments is not None:
        visible &= slots.segments[:, None] == rows.segments[..., None]
    return visible[:, None]


def _product(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(formula, x, y, preferred_element_type=jnp.float32)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """q k^T, [b, h, R, S] in float32."""
    rows = q.shape[2]
    if rows > FEW_ROWS or target.platform() == "gpu":
        return _product("bhrd,bhsd->bhrs", q, k)
    # XLA's CPU dot repacks its right operand: with few rows that must be q, at least 4 wide.
    q = jnp.pad(q, ((0, 0), (0, 0), (0, max(0, 4 - rows)), (0, 0)))
    return _product("bhsd,bhdr->bhsr", k, q.swapaxes(2, 3))[..., :rows].swapaxes(2, 3)


def _softmax_block(q, k, v, rows, slots, scale, floor):
    """Un-normalised softmax against one block of slots.

    Returns sum_s w[s] v[s] [b, h, R, D], the maximum m = max(floor, scores) and the total
    sum_s w[s] [b, h, R], with w = exp(score - m).
    """
    scores = jnp.where(_visible(rows, slots), scale * _scores(q.astype(k.dtype), k), -jnp.inf)
    maximum = jnp.maximum(floor, scores.max(-1))
    weights = jnp.exp(scores - maximum[..., None])
    return _product("bhrs,bhsd->bhrd", weights.astype(v.dtype), v), maximum, weights.sum(-1)


def _no_blocks(q):
    """The state of the online softmax before any block: weighted sum, maximum and total."""
    zero = jnp.zeros_like(q, jnp.float32)
    return zero, zero[..., 0] + MASKED, zero[..., 0]


def _add_block(state, q, k, v, rows, slots, scale):
    """The state with one more block of slots in it."""
    weighted, maximum, total = state
    added, new_maximum, added_total = _softmax_block(q, k, v, rows, slots, scale, maximum)
    decay = jnp.exp(maximum - new_maximum)
    return weighted * decay[..., None] + added, new_maximum, total * decay + added_total


def _normalise(weighted, maximum, total):
    return weighted / jnp.where(total > 0, total, 1.0)[..., None], maximum + jnp.log(total)


def _attend_dense(q, k, v, rows, slots, scale):
    return _normalise(*_softmax_block(q, k, v, rows, slots, scale, MASKED))


def _dense_gradient(q, k, v, rows, slots, out_bar, lse, shift, scale):
    """dq, dk, dv in float32; the scores are laid out as in the forward pass, [R, S].

    A row's place in memory is not linear in its label's, and XLA's CPU compiler gives up on
    vectors for a loop that has rows innermost.
    """
    visible = _visible(rows, slots)
    operand = q.astype(k.dtype)
    scores = scale * _product("bhrd,bhsd->bhrs", operand, k)
    weights = jnp.where(visible, jnp.exp(scores - lse[..., None]), 0.0)
    weights_bar = _product("bhrd,bhsd->bhrs", out_bar, v)
    scores_bar = scale * jnp.where(visible, weights * (weights_bar + shift[..., None]), 0.0)
    scores_bar, weights = scores_bar.astype(k.dtype), weights.astype(v.dtype)
    dq = _product("bhrs,bhsd->bhrd", scores_bar, k)
    dk = _product("bhrs,bhrd->bhsd", scores_bar, operand)
    return dq, dk, _product("bhrs,bhrd->bhsd", weights, out_bar.astype(v.dtype))


# Few rows: a loop over blocks of the filled slots of one layer, read where they stand.


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend_cache(q, k, v, layer, rows: Labels, slots: Labels, scale: float):
    """As `_attend` for the keys and values of a layer of a cache [L, b, h, S, D], or [b, h, S, D].

    Slots after the last one that any row sees are not read, so a cache with room to spare costs
    nothing; and a layer's slice of it is never copied as a whole. An array of one layer is read in
    place, and whole, once so much of it is filled that copies of the blocks would take longer.
    """
    n_slots, alone = k.shape[-2], layer is None
    size = FEW_ROWS_SLOTS
    if target.platform() == "gpu":
        size = max(GPU_SLOTS * size, -(-n_slots // GPU_BLOCKS))
    size = min(n_slots, size)
    seen = (slots.positions >= 0) & (slots.positions <= rows.positions.max(1, keepdims=True))
    filled = jnp.where(seen.any(0), jnp.arange(1, n_slots + 1), 0).max()

    def step(i, state):
        start = jnp.minimum(i * size, n_slots - size)
        first = () if alone else (layer,)
        block_k, block_v = (
            jax.lax.dynamic_slice(
                x,
                (*first, 0, 0, start, 0),
                (*(1 for _ in first), *x.shape[-4:-2], size, x.shape[-1]),
            ).reshape(*x.shape[-4:-2], size, x.shape[-1])
            for x in (k, v)
        )
        block = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), slots)
        # The last block overlaps the one before it where its size does not divide S.
        fresh = start + jnp.arange(size) >= i * size
        block = block._replace(positions=jnp.where(fresh, block.positions, -1))
        return _add_block(state, q, block_k, block_v, rows, block, scale)

    state = _no_blocks(q)
    blocks = -(-n_slots // size)

    def by_block(state):
        return jax.lax.fori_loop(0, jnp.minimum(-(-filled // size), blocks), step, state)

    def in_place(state):
        return _add_block(state, q, k, v, rows, slots, scale)

    if blocks == 1:
        state = in_place(state) if alone else step(0, state)
    elif alone:
        state = jax.lax.cond(filled * COPIED > n_slots, in_place, by_block, state)
    else:
        state = by_block(state)
    out, lse = _normalise(*state)
    return out.astype(q.dtype), lse


def _attend_cache_forward(q, k, v, layer, rows, slots, scale):
    out, lse = checkpoint_name(_attend_cache(q, k, v, layer, rows, slots, scale), "attention")
    return (out, lse), (q, k, v, layer, rows, slots, out, lse)


def _attend_cache_backward(scale, residuals, cotangents):
    q, k, v, layer, rows, slots, out, lse = residuals
    if layer is None:
        dq, dk, dv, *_ = _attend_backward(scale, (q, k, v, rows, slots, out, lse), cotangents)
        return dq, dk, dv, None, None, None
    of_layer = (q, k[layer], v[layer], rows, slots, out, lse)
    dq, dk, dv, *_ = _attend_backward(scale, of_layer, cotangents)
    dk, dv = (jnp.zeros_like(x).at[layer].set(dx) for x, dx in ((k, dk), (v, dv)))
    return dq, dk, dv, None, None, None


_attend_cache.defvjp(_attend_cache_forward, _attend_cache_backward)


# Many blocks: a scan over blocks of rows, and for each a loop over the blocks of slots it sees.


def _attend_blocks(q, k, v, rows, slots, scale):
    blocks = block_sizes(q, k)
    visible_blocks, slots_at = block_index(k, v, slots, blocks)

    def attend_rows(_, inputs):
        batch, q, rows = inputs
        order, count = visible_blocks(batch, rows)

        def step(i, state):
            k, v, slots = slots_at(batch, order[i])
            return _add_block(state, q, k, v, rows, slots, scale)

        return None, _normalise(*jax.lax.fori_loop(0, count, step, _no_blocks(q)))

    out, lse = scan_rows(attend_rows, None, q, rows, (), blocks)[1]
    return from_grid(out, q, blocks), from_grid(lse, q[..., 0], blocks)


def _blocks_gradient(q, k, v, rows, slots, out_bar, lse, shift, scale):
    blocks = block_sizes(q, k)
    visible_blocks, slots_at = block_index(k, v, slots, blocks)

    def gradient_of_rows(kv_bar, inputs):
        batch, q, rows, *of_rows = inputs
        order, count = visible_blocks(batch, rows)

        def step(i, state):
            dq, dk, dv = state
            block = slots_at(batch, order[i])
            added = _dense_gradient(q, block[0], block[1], rows, block[2], *of_rows, scale)
            start = (batch, 0, first_slot(order[i], k, blocks), 0)

            def add(total, x):
                x += jax.lax.dynamic_slice(total, start, x.shape)
                return jax.lax.dynamic_update_slice(total, x, start)

            return dq + added[0], add(dk, added[1]), add(dv, added[2])

        dq, *kv_bar = jax.lax.fori_loop(0, count, step, (jnp.zeros_like(q, jnp.float32), *kv_bar))
        return kv_bar, dq

    kv_bar = [jnp.zeros_like(x, jnp.float32) for x in (k, v)]
    per_row = (out_bar, lse, shift)
    (dk, dv), dq = scan_rows(gradient_of_rows, kv_bar, q, rows, per_row, blocks)
    return from_grid(dq, q, blocks), dk, dv
