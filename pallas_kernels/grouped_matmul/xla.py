"""Grouped matmul as a loop over tiles of rows, where ragged_dot is E dense products (CPU, GPU).

A tile starts at its group's first row or a whole number of tiles after it and always has the full
height; rows past the end of its group hold a wrong product until the next group's tile overwrites
them. So the cost is that of N rows and at most one more tile for each group.
"""

import jax
import jax.numpy as jnp

MIN_TILE, MAX_TILE = 8, 128
MATRIX_TILE = 256  # rows a step in the gradient of w: each adds to a whole [K, M] matrix


@jax.custom_vjp
def grouped_matmul_xla(x: jax.Array, w: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Arguments and results as in `grouped_matmul`."""
    return _rows_times_matrices(x, w, group_sizes)


def _forward(x, w, group_sizes):
    return grouped_matmul_xla(x, w, group_sizes), (x, w, group_sizes)


def _backward(residuals, out_bar):
    x, w, group_sizes = residuals
    dx = _rows_times_matrices(out_bar, w.swapaxes(1, 2), group_sizes)
    return dx, _sums_of_outer_products(x, out_bar, group_sizes, w), None


grouped_matmul_xla.defvjp(_forward, _backward)


def _tile_rows(n_rows: int, n_groups: int, share: int, most: int) -> int:
    """1/share of the mean group, so that partial tiles add little, as a power of two."""
    return min(most, max(MIN_TILE, 1 << (n_rows // (share * n_groups)).bit_length() >> 1))


def _rows_times_matrices(x: jax.Array, w: jax.Array, group_sizes: jax.Array) -> jax.Array:
    n_rows, n_groups = x.shape[0], w.shape[0]
    tile = _tile_rows(n_rows, n_groups, 4, MAX_TILE)
    padded = jnp.pad(x, ((0, tile), (0, 0)))

    def multiply_group(out, group):
        matrix, start, size = group

        def multiply_tile(i, out):
            rows = jax.lax.dynamic_slice_in_dim(padded, start + i * tile, tile)
            product = jnp.dot(rows, matrix, preferred_element_type=jnp.float32).astype(x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(out, product, start + i * tile, 0)

        return jax.lax.fori_loop(0, -(-size // tile), multiply_tile, out), None

    starts = jnp.cumsum(group_sizes) - group_sizes
    out = jnp.zeros((n_rows + tile, w.shape[2]), x.dtype)
    out, _ = jax.lax.scan(multiply_group, out, (w, starts, group_sizes))
    return jnp.where(jnp.arange(n_rows)[:, None] < group_sizes.sum(), out[:n_rows], 0)


def _sums_of_outer_products(
    x: jax.Array, y: jax.Array, group_sizes: jax.Array, like: jax.Array
) -> jax.Array:
    """sum_n x[n] y[n]^T over the rows of each group: [E, K, M] in like.dtype."""
    tile = _tile_rows(x.shape[0], like.shape[0], 2, MATRIX_TILE)
    x, y = (jnp.pad(rows, ((0, tile), (0, 0))) for rows in (x, y))

    def sum_group(_, group):
        start, size = group

        def add_tile(i, total):
            x_tile = jax.lax.dynamic_slice_in_dim(x, start + i * tile, tile)
            y_tile = jax.lax.dynamic_slice_in_dim(y, start + i * tile, tile)
            inside = jnp.arange(tile)[:, None] < size - i * tile
            return total + jnp.einsum(
                "nk,nm->km",
                jnp.where(inside, x_tile, 0),
                y_tile,
                preferred_element_type=jnp.float32,
            )

        zero = jnp.zeros(like.shape[1:], jnp.float32)
        return None, jax.lax.fori_loop(0, -(-size // tile), add_tile, zero).astype(like.dtype)

    starts = jnp.cumsum(group_sizes) - group_sizes
    return jax.lax.scan(sum_group, None, (starts, group_sizes))[1]
