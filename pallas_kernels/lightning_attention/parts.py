"""How float32 values meet bfloat16 tokens in a product; inside the bodies of Pallas kernels."""

import jax
import jax.numpy as jnp


def parts(x: jax.Array, dtype, exact: bool) -> list[jax.Array]:
    """Float32 x in the tokens' dtype: rounded, or for exact products two parts, their sum x."""
    high = x.astype(dtype)
    if dtype == jnp.float32 or not exact:
        return [high]
    return [high, (x - high.astype(jnp.float32)).astype(dtype)]
