"""Tokens of padded rows laid end to end, so that padding costs nothing outside the token mixers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mmrl.sharding import row_groups


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packing:
    """Where the valid tokens of rows [B, T] lie in D rows of N, and the other way round.

    A mesh has D devices or groups of them for the rows (`row_groups`), and each packs its own B / D
    rows into one. `places` [B, T] are places in that row, N for padding; `sources` [D, N] are
    indices into the group's B / D · T tokens, one past the last for places that hold none.
    """

    places: jax.Array
    sources: jax.Array

    @classmethod
    def of(cls, valid: jax.Array, size: int) -> "Packing":
        """The packing of the tokens that are valid [B, T], `size` of each group at most."""
        flat = valid.reshape(row_groups(len(valid)), -1)
        counts = jnp.cumsum(flat, axis=1, dtype=jnp.int32) - 1
        places = jnp.where(flat, jnp.minimum(counts, size), size).reshape(valid.shape)
        fill = flat.shape[1]
        (sources,) = jax.vmap(lambda row: jnp.nonzero(row, size=size, fill_value=fill))(flat)
        return cls(places, sources.astype(jnp.int32))

    @property
    def filled(self) -> jax.Array:
        """[D, N]: which places hold a token."""
        return self.sources < self.places.size // len(self.sources)

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, T, …] to [D, N, …], 0 where a row holds nothing."""
        groups = len(self.sources)
        rows = x.reshape(groups, -1, *x.shape[2:])
        return jax.vmap(_take)(rows, self.sources, self.places.reshape(groups, -1))

    def unpack(self, x: jax.Array) -> jax.Array:
        """[D, N, …] to [B, T, …], 0 at padding."""
        rows = jax.vmap(_take)(x, self.places.reshape(len(x), -1), self.sources)
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
