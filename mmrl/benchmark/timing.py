"""Medians of wall-clock seconds, and what this machine can do at best."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of `repeats` calls, after one that compiles."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def read_bandwidth(gib: float = 0.5) -> float:
    """Bytes a second that a sum of, or a product of one row with, a large matrix reads."""
    rows = 1024
    matrix = jnp.ones((rows, int(gib * 2**30) // 4 // rows))
    row = jnp.ones((1, rows))
    programs = (
        functools.partial(jax.jit(jnp.sum), matrix),
        functools.partial(jax.jit(jnp.matmul), row, matrix),
    )
    return matrix.nbytes / min(median_seconds(program, 5) for program in programs)


def matrix_rate(rows: int = 2048, inner: int = 2048, columns: int = 2048) -> float:
    """FLOP/s of a float32 product [rows, inner] × [inner, columns]."""
    x, w = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    return (
        2 * rows * inner * columns / median_seconds(functools.partial(jax.jit(jnp.matmul), x, w), 9)
    )


class Compilations:
    """Counts the programs that XLA compiles, or reads from the compilation cache, from now on."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"
