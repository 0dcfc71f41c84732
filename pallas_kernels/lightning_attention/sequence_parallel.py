"""Lightning attention over a sequence that is sharded over a mesh axis.

Each device sums what its own tokens add to the state. The states of all devices, D x D a head and
small beside the tokens, are gathered; weighted by the decay between the devices' last tokens their
sum is the state that enters each device, from which it attends on its own:

    S_in[d] = sum_{j < d} lam^(valid tokens after device j and before device d) S_local[j]

Differentiated, the gather becomes a reduce-scatter of the states' gradients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.lightning_attention import api
from pallas_kernels.lightning_attention.xla import segment_positions


def sequence_parallel_lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slopes: jax.Array,
    *,
    axis_name: str,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_attention` of rows whose tokens lie in order on the devices of a mesh axis.

    To be called inside `jax.shard_map`, with q, k, v and segment_ids sharded over T on `axis_name`
    and initial_state whole there; B and H may be sharded over other axes. Exact, forward and
    backward: the results are those of the whole row, segments and padding included.

    Args:
      q, k, v: [B, T, H, D], the tokens of this device.
      slopes: [H].
      axis_name: the mesh axis of the sequence.
      initial_state: [B, H, D, D], before the first device; zeros if None.
      segment_ids: int [B, T], 0 for padding; None means one segment without padding.
      implementation: that of `lightning_attention`.

    Returns:
      out [B, T, H, D], of this device's tokens, and the state after the last device's,
      [B, H, D, D] in float32, the same on all.

    Source: LASP-2 (Sun et al., arXiv 2502.07563), with decay and segments.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    ids = jnp.ones_like(q[:, :, 0, 0], jnp.int32) if segment_ids is None else segment_ids
    rates = -lax.stop_gradient(slopes).astype(dtype)
    local = _local_state(k, v, rates, ids)
    states = lax.all_gather(local, axis_name)
    start = jnp.zeros_like(local) if initial_state is None else initial_state.astype(dtype)
    states = jnp.concatenate([start[None], states])  # [1 + devices, B, H, D, D]
    weights = _weights(_summaries(ids, axis_name), lax.axis_index(axis_name), rates)
    entering = jnp.einsum("nbh,nbhde->bhde", weights, states, precision=lax.Precision.HIGHEST)
    out, final = api.lightning_attention(
        q,
        k,
        v,
        slopes,
        initial_state=entering,
        segment_ids=segment_ids,
        implementation=implementation,
    )
    is_last = lax.axis_index(axis_name) == lax.axis_size(axis_name) - 1
    return out, lax.psum(jnp.where(is_last, final, 0), axis_name)


def _local_state(k, v, rates, segment_ids):
    """What the tokens here add to the state after them, sum_t lam^(tokens after t) k_t^T v_t."""
    count, run = segment_positions(segment_ids)
    weights = jnp.exp(rates * (count[:, -1:] - count[:, 1:])[..., None])  # [B, T, H]
    kept = (segment_ids != 0) & (run[:, 1:] == run[:, -1:])
    weights = jnp.where(kept[..., None], weights, 0)[..., None]
    k, v = (jnp.where(kept[..., None, None], x, 0).astype(rates.dtype) for x in (k, v))
    return jnp.einsum("bthd,bthe->bhde", weights * k, v, precision=lax.Precision.HIGHEST)


class _Summaries(NamedTuple):
    """What the devices' segment ids amount to, each int [devices, B]."""

    valid: jax.Array  # tokens that are not padding
    changes: jax.Array  # of segment, between them
    first: jax.Array  # segment of the first of them, 0 if there is none
    last: jax.Array  # segment of the last of them


def _summaries(segment_ids, axis_name):
    """The summaries of all devices, from the segment ids [B, T] of each."""
    valid = segment_ids != 0
    count, run = segment_positions(segment_ids)
    first, last = jnp.argmax(valid, axis=1), valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    ends = (jnp.take_along_axis(segment_ids, x[:, None], axis=1)[:, 0] for x in (first, last))
    return lax.all_gather(_Summaries(count[:, -1], run[:, -1], *ends), axis_name)


def _weights(devices: _Summaries, index: jax.Array, rates: jax.Array) -> jax.Array:
    """Weights [1 + devices, B, H] of the initial and the devices' states in that entering `index`.

    A state counts while no segment changes between the tokens it is from and those it would meet.
    """
    number = len(devices.valid)
    filled = jnp.where(devices.valid > 0, jnp.arange(number)[:, None], -1)
    latest = jnp.pad(lax.cummax(filled, axis=0), ((1, 0), (0, 0)), constant_values=-1)[:-1]
    before = jnp.take_along_axis(devices.last, jnp.maximum(latest, 0), axis=0)
    change = (latest >= 0) & (devices.valid > 0) & (before != devices.first)
    count = jnp.pad(jnp.cumsum(devices.valid, axis=0), ((1, 0), (0, 0)))
    run = jnp.pad(jnp.cumsum(devices.changes + change, axis=0), ((1, 0), (0, 0)))
    linked = (run == run[index]) & ~change[index] & (jnp.arange(number + 1) <= index)[:, None]
    distance = jnp.maximum(count[index] - count, 0)
    return jnp.where(linked[..., None], jnp.exp(rates * distance[..., None]), 0)
