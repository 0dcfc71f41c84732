"""Tokens through their experts on one device of a mesh: dropless, whatever the load.

Experts may be sharded over the mesh axis `expert`, the width of each over `tensor`. The tokens of a
device go to the devices of their experts and come back (ragged all-to-all, in blocks of tokens so
that the rows that arrive in the worst case are no more than those a device has of its own); a few
tokens, as in decoding, are gathered by all devices of the axis instead.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.grouped_matmul import grouped_matmul

FEW_TOKENS = 256  # where sorting costs more than the products it saves

kept = functools.partial(checkpoint_name, name="experts")


def routed_experts(names: Mapping[str, tuple[str, ...]], x, weights, ids, gate, up, down):
    """Σ_k weights[…, k] · expert ids[…, k] of x, on one device of the mesh.

    Args:
      names: mesh axes of the logical axes, as `mmrl.sharding.per_device` gives them.
      x: [B, T, M]. weights, ids: [B, T, K]; an id past the last expert is padding, which gives 0.
      gate, up, down: the device's part of [E, M, F], [E, M, F] and [E, F, M], whose M is gathered
        here, so that the gradient is scattered as it is summed.

    Returns: [B, T, M].
    """
    w = [gate, up, down]
    for axis_name in names["embed"]:
        w = [
            jax.lax.all_gather(y, axis_name, axis=axis, tiled=True)
            for y, axis in zip(w, (1, 1, 2), strict=True)
        ]
    flat = x.reshape(-1, x.shape[-1])
    weights, ids = (y.reshape(len(flat), -1) for y in (weights, ids))
    few = len(flat) <= FEW_TOKENS
    if not names["expert"]:
        out = local_experts(flat, weights, ids, *w)
    elif few:
        (axis_name,) = names["expert"]
        first = jax.lax.axis_index(axis_name) * len(w[0])
        flat, weights, ids = (
            jax.lax.all_gather(y, axis_name, tiled=True) for y in (flat, weights, ids)
        )
        mine = (ids >= first) & (ids < first + len(w[0]))
        out = local_experts(flat, weights, jnp.where(mine, ids - first, len(w[0])), *w)
        out = jax.lax.psum_scatter(out, axis_name, tiled=True)
    else:
        (axis_name,) = names["expert"]
        out = exchanged_experts(axis_name, flat, weights, ids, *w)
    for axis_name in names["mlp"]:
        out = jax.lax.psum(out, axis_name)
    return out.reshape(x.shape)


def local_experts(x, weights, ids, gate, up, down) -> jax.Array:
    """As `routed_experts`, x [N, M], for experts that are all here; an id of E' or more gives 0.

    Tokens are sorted by expert and multiplied group by group. A few tokens go through every expert
    instead where at least half of them are chosen anyway: that reads all weights once, in place.
    """
    e, k = len(gate), ids.shape[1]
    if len(x) <= FEW_TOKENS and e <= 2 * k:
        chosen = jax.nn.one_hot(ids, e, dtype=x.dtype)
        weights = kept(jnp.einsum("nke,nk->ne", chosen, weights))
        rows = jnp.broadcast_to(x, (e, *x.shape))
        hidden = jax.nn.silu(kept(jnp.einsum("enm,emf->enf", rows, gate)))
        hidden *= kept(jnp.einsum("enm,emf->enf", rows, up))
        # Rounded to x.dtype before the sum, as rows of the sorted form are.
        return jnp.einsum("enm,ne->nm", kept(jnp.einsum("enf,efm->enm", hidden, down)), weights)
    order = jnp.argsort(ids.reshape(-1))
    inverse = jnp.argsort(order)
    rows = permute_rows(x, order, inverse, k)
    rows = sorted_experts(rows, _counts(ids, e), gate, up, down)
    chosen = permute_rows(rows, inverse, order, 1).reshape(-1, k, x.shape[-1])
    return jnp.einsum("nkm,nk->nm", chosen, weights)


def exchanged_experts(axis_name: str, x, weights, ids, *w) -> jax.Array:
    """As `local_experts`, for experts on the devices of a mesh axis, E' of them on each, in order.

    `ids` count over all devices; those past the last expert give 0.
    """
    devices, k = jax.lax.axis_size(axis_name), ids.shape[1]
    here, me = len(w[0]), jax.lax.axis_index(axis_name)
    blocks = max(n for n in range(1, devices + 1) if len(x) % n == 0)

    @jax.checkpoint  # else what arrives would be kept for every block
    def block(_, tokens):
        x, weights, ids = tokens
        order = jnp.argsort(ids.reshape(-1))
        inverse = jnp.argsort(order)
        rows = permute_rows(x, order, inverse, k)
        # [source, destination, expert there]: how many rows go where.
        sizes = jax.lax.all_gather(_counts(ids, devices * here), axis_name)
        sizes = sizes.reshape(devices, devices, here)
        arrived = ragged_all_to_all(rows, sizes.sum(2), len(rows) * devices, axis_name)
        # They lie by source and then by expert, and are multiplied by expert and then by source.
        of_source = sizes[:, me]
        expert = jnp.repeat(
            jnp.append(jnp.tile(jnp.arange(here), devices), here),
            jnp.append(of_source.reshape(-1), len(arrived) - of_source.sum()),
            total_repeat_length=len(arrived),
        )
        by_expert = jnp.argsort(expert)
        back = jnp.argsort(by_expert)
        arrived = permute_rows(arrived, by_expert, back, 1)
        arrived = sorted_experts(arrived, of_source.sum(0), *w)
        arrived = permute_rows(arrived, back, by_expert, 1)
        rows = ragged_all_to_all(arrived, sizes.sum(2).T, len(rows), axis_name)
        chosen = permute_rows(rows, inverse, order, 1).reshape(-1, k, x.shape[-1])
        return None, jnp.einsum("nkm,nk->nm", chosen, weights)

    split = (y.reshape(blocks, -1, y.shape[-1]) for y in (x, weights, ids))
    return jax.lax.scan(block, None, tuple(split))[1].reshape(x.shape)


def sorted_experts(rows: jax.Array, sizes: jax.Array, gate, up, down) -> jax.Array:
    """down(silu(gate x) * up x) of rows [N, M] sorted by expert, `sizes` [E] of each."""
    hidden = jax.nn.silu(kept(grouped_matmul(rows, gate, sizes)))
    hidden *= kept(grouped_matmul(rows, up, sizes))
    return kept(grouped_matmul(hidden, down, sizes))


def ragged_all_to_all(rows: jax.Array, sizes: jax.Array, length: int, axis_name: str) -> jax.Array:
    """Sends consecutive runs of rows [N, M] to the devices of a mesh axis: [length, M] that came.

    `sizes` [source, destination] are the lengths of all runs. Rows arrive in the order of their
    sources; past them are zeros.
    """
    me = jax.lax.axis_index(axis_name)
    starts = jnp.cumsum(sizes, axis=1) - sizes  # of the runs on their sources
    places = jnp.cumsum(sizes, axis=0) - sizes  # of the runs on their destinations

    def exchange(rows, sizes, starts, places):
        out = jnp.zeros((length, rows.shape[1]), rows.dtype)
        return jax.lax.ragged_all_to_all(
            rows, out, starts[me], sizes[me], places[me], sizes[:, me], axis_name=axis_name
        )

    def gather(rows, sizes, starts, places):
        everything = jax.lax.all_gather(rows, axis_name)
        row = jnp.arange(length)
        source = jnp.sum(row[:, None] >= (places + sizes)[:, me], axis=1)
        valid = source < len(sizes)
        source = jnp.minimum(source, len(sizes) - 1)
        index = starts[source, me] + row - places[source, me]
        return jnp.where(valid[:, None], everything[source, jnp.where(valid, index, 0)], 0)

    # XLA has no ragged all-to-all for CPUs. Decided by the platform compiled for.
    return jax.lax.platform_dependent(rows, sizes, starts, places, cpu=gather, default=exchange)


def _counts(ids: jax.Array, number: int) -> jax.Array:
    return jnp.sum(ids.reshape(-1, 1) == jnp.arange(number), axis=0, dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def permute_rows(x: jax.Array, order: jax.Array, inverse: jax.Array, copies: int) -> jax.Array:
    """Rows of x [N, M], each `copies` times, in the order [N · copies], a permutation.

    `inverse` undoes `order`, so that the gradient is a gather as well: the scatter that
    differentiating an index would give runs row by row on a CPU and in no fixed order on a GPU.
    """
    return x[order // copies]


def _permute_rows_forward(x, order, inverse, copies):
    return permute_rows(x, order, inverse, copies), inverse


def _permute_rows_backward(copies, inverse, out_bar):
    return out_bar[inverse].reshape(-1, copies, out_bar.shape[-1]).sum(axis=1), None, None


permute_rows.defvjp(_permute_rows_forward, _permute_rows_backward)
