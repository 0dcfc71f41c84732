"""Times the kernels on this machine's default device: `python -m pallas_kernels.bench`."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags

from pallas_kernels import lightning_attention

_KERNELS = flags.DEFINE_list("kernels", ["lightning_attention"], "kernels to time")
_IMPLEMENTATION = flags.DEFINE_string("implementation", None, "implementation; default: the best")
_BATCH = flags.DEFINE_integer("batch", 1, "rows", lower_bound=1)
_LENGTHS = flags.DEFINE_list("lengths", ["1", "1024", "16384"], "tokens a row")
_HEADS = flags.DEFINE_integer("heads", 8, "heads", lower_bound=1)
_HEAD_DIM = flags.DEFINE_integer("head_dim", 32, "width of a head", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "dtype of q, k and v")
_REPEATS = flags.DEFINE_integer("repeats", 10, "runs, of which the fastest counts", lower_bound=1)


def fastest_seconds(function: Callable, *args: jax.Array, repeats: int) -> float:
    """Wall-clock seconds of the fastest of `repeats` runs, after one that compiles."""
    function = jax.jit(function)
    jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def time_lightning_attention(
    batch: int, length: int, heads: int, head_dim: int, dtype: str, implementation: str | None
) -> dict[str, float]:
    """Seconds of the forward pass, and of it with all gradients, for one shape."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (batch, length, heads, head_dim)
    q, k, v = (jax.random.normal(key, shape, dtype) for key in keys[:3])
    state = jax.random.normal(keys[3], (batch, heads, head_dim, head_dim))
    slopes = 2.0 ** (-8 * jnp.arange(1, heads + 1) / heads)

    def forward(q, k, v, state):
        return lightning_attention(
            q, k, v, slopes, initial_state=state, implementation=implementation
        )

    def with_gradients(q, k, v, state):
        results, pullback = jax.vjp(forward, q, k, v, state)
        return results, pullback(results)

    passes = {"forward": forward, "forward_backward": with_gradients}
    return {
        name: fastest_seconds(function, q, k, v, state, repeats=_REPEATS.value)
        for name, function in passes.items()
    }


KERNELS = {"lightning_attention": time_lightning_attention}


def main(_: list[str]) -> None:
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), {_DTYPE.value}, {_BATCH.value} rows")
    for kernel in _KERNELS.value:
        if kernel not in KERNELS:
            raise app.UsageError(f"--kernels: no kernel {kernel!r}; choose from {list(KERNELS)}")
        for length in map(int, _LENGTHS.value):
            seconds = KERNELS[kernel](
                _BATCH.value,
                length,
                _HEADS.value,
                _HEAD_DIM.value,
                _DTYPE.value,
                _IMPLEMENTATION.value,
            )
            for name, value in seconds.items():
                rate = _BATCH.value * length / value
                print(f"{kernel} T={length} {name}: {1e3 * value:.3f} ms, {rate:,.0f} tokens/s")


if __name__ == "__main__":
    app.run(main)
