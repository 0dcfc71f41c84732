"""Tokens of padded rows laid end to end, so that padding costs nothing outside the token mixers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packing:
    """Where the valid tokens of rows [B, T] lie in one row of N, and the other way round.

    `places` [B, T] are places in the row, N for padding; `sources` [N] are indices into the B · T
    tokens, B · T for places that hold none.
    """

    places: jax.Array
    sources: jax.Array

    @classmethod
    def of(cls, valid: jax.Array, size: int) -> "Packing":
        """The packing of the tokens that are valid [B, T]; of more than `size`, the first."""
        flat = valid.reshape(-1)
        counts = jnp.cumsum(flat, dtype=jnp.int32) - 1
        places = jnp.where(flat, jnp.minimum(counts, size), size).reshape(valid.shape)
        (sources,) = jnp.nonzero(flat, size=size, fill_value=flat.size)
        return cls(places, sources.astype(jnp.int32))

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, T, …] to [1, N, …], 0 where the row holds nothing."""
        rows = x.reshape(-1, *x.shape[2:])
        return _take(rows, self.sources, self.places.reshape(-1))[None]

    def unpack(self, x: jax.Array) -> jax.Array:
        """[1, N, …] to [B, T, …], 0 at padding."""
        rows = _take(x[0], self.places.reshape(-1), self.sources)
        return rows.reshape(*self.places.shape, *x.shape[2:])


@jax.custom_vjp
def _take(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """Rows `index` of x, 0 past the last; `inverse` undoes it, so that the gradient is no scatter.

    A scatter runs row by row on a CPU and in no fixed order on a GPU.
    """
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _take_forward(x, index, inverse):
    return _take(x, index, inverse), (index, inverse)


def _take_backward(residuals, out_bar):
    index, inverse = residuals
    return _take(out_bar, inverse, index), None, None


_take.defvjp(_take_forward, _take_backward)
