"""What an H100 would run, from compiled code: `python -m pallas_kernels.gpu_static`.

For each pass, kernel and shape: the blocks of its grid and how many are resident on one of the 132
multiprocessors; a thread's registers and spilled bytes and a block's shared memory, from ptxas; its
tensor-core instructions; and the floor in microseconds, the larger of memory time at 3.35 TB/s
and matrix time at 989 TFLOP/s (bfloat16, dense) or a third of 495 (float32 in three TF32 products).
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from pallas_kernels import gpu_compiler
from pallas_kernels.gpu_compiler import Kernel
from pallas_kernels.lightning_attention import triton
from pallas_kernels.lightning_attention.triton_kernels import CHUNK

_PASSES = flags.DEFINE_list("passes", ["forward", "backward", "decode"], "passes to compile")
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "131072"], "tokens a row, but 1 in decoding")
_BATCH = flags.DEFINE_integer("batch", 1, "rows", lower_bound=1)
_DECODE_BATCH = flags.DEFINE_integer("decode_batch", 64, "rows in decoding", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 64, "heads", lower_bound=1)
_DIMS = flags.DEFINE_list("head_dims", ["128"], "widths of a head")
_DTYPES = flags.DEFINE_list("dtypes", ["bfloat16"], "dtypes of q, k and v")
_SEGMENTS = flags.DEFINE_bool("segments", False, "with segment ids")
_JSON = flags.DEFINE_bool("json", False, "one JSON object a line in place of the table")

_BANDWIDTH, _PEAK = 3.35e12, {"bfloat16": 989e12, "float16": 989e12, "float32": 495e12 / 3}


class Row(NamedTuple):
    """One line of the report."""

    direction: str  # forward, backward or decode
    kernel: str
    batch: int
    length: int
    heads: int
    dim: int
    dtype: str
    blocks: int
    resident: int  # blocks on a multiprocessor
    threads: int
    registers: int
    spilled_bytes: int
    shared_kib: float
    tensor_core: int
    memory_us: float
    matrix_us: float


def analyse(
    direction: str, batch: int, length: int, heads: int, dim: int, dtype: str, segments: bool
) -> Iterator[Row]:
    """Compiles one pass; the process must be in `gpu_compiler.environment`."""
    shape = jax.ShapeDtypeStruct
    tokens = shape((batch, length, heads, dim), dtype)
    state, slopes = shape((batch, heads, dim, dim), jnp.float32), shape((heads,), jnp.float32)
    ids = shape((batch, length), jnp.int32) if segments else None
    function: Callable = _backward if direction == "backward" else triton.lightning_attention
    operands = [tokens, tokens, tokens, slopes, state, ids]
    operands += [tokens, state] if direction == "backward" else []
    for kernel in gpu_compiler.kernels_of(function, *operands):
        work = _work(kernel, batch, length, heads, dim, jnp.dtype(dtype).itemsize)
        yield Row(
            direction,
            kernel.name.removeprefix("lightning_attention_"),
            *(batch, length, heads, dim, dtype),
            kernel.blocks,
            kernel.resident,
            kernel.threads,
            kernel.registers,
            kernel.spilled_bytes,
            kernel.shared_bytes / 1024,
            kernel.tensor_core,
            memory_us=1e6 * work[1] / _BANDWIDTH,
            matrix_us=1e6 * work[0] / _PEAK[dtype],
        )


def _backward(q, k, v, slopes, state, ids, dout, dstate):
    def function(q, k, v, state):
        return triton.lightning_attention(q, k, v, slopes, state, ids)

    return jax.vjp(function, q, k, v, state)[1]((dout, dstate))


def _work(kernel: Kernel, batch: int, length: int, heads: int, dim: int, itemsize: int):
    """FLOPs of matrix products that the result needs, and bytes that must be moved."""
    tokens, states = batch * length * heads, batch * heads * dim * dim * 4
    if kernel.name.endswith("one_token"):
        return 0, 2 * states + 4 * tokens * dim * itemsize
    splits = triton.number_of_splits((batch, length, heads, dim))
    if kernel.name.endswith("states"):
        return 2 * tokens * dim * dim, 2 * tokens * dim * itemsize + splits * states
    products = 4 * dim * dim + 4 * CHUNK * dim
    return tokens * products, 4 * tokens * dim * itemsize + (splits + 1) * states


def run(*options: str, **keywords) -> subprocess.CompletedProcess:
    """Runs `python -m pallas_kernels.gpu_static` with these flags where the compiler is found.

    Raises:
      RuntimeError: if the compiler is not installed.
      subprocess.CalledProcessError: if a kernel does not compile.
    """
    if not gpu_compiler.available():
        raise RuntimeError("no GPU compiler here: run `python -m pallas_kernels.gpu_compiler`")
    with tempfile.TemporaryDirectory(prefix="gpu_compiler_") as dump:
        command = [sys.executable, "-m", "pallas_kernels.gpu_static", *options]
        return subprocess.run(command, env=gpu_compiler.environment(dump), check=True, **keywords)


def rows(*options: str) -> list[Row]:
    """The report of `run` as data."""
    output = run("--json", *options, stdout=subprocess.PIPE, text=True).stdout
    return [Row(**json.loads(line)) for line in output.splitlines()]


def main(_: list[str]) -> None:
    if not gpu_compiler.in_environment():
        run(*sys.argv[1:])
        return
    if not _JSON.value:
        print(" ".join(f"{name:>{_width(name)}}" for name in Row._fields))
    for direction, dim, dtype in itertools.product(
        _PASSES.value, map(int, _DIMS.value), _DTYPES.value
    ):
        decoding = direction == "decode"
        batch = _DECODE_BATCH.value if decoding else _BATCH.value
        for length in [1] if decoding else map(int, _LENGTHS.value):
            for row in analyse(direction, batch, length, _HEADS.value, dim, dtype, _SEGMENTS.value):
                print(json.dumps(row._asdict()) if _JSON.value else _line(row), flush=True)


def _width(name: str) -> int:
    return max(len(name), 9)


def _line(row: Row) -> str:
    cells = (f"{x:.1f}" if isinstance(x, float) else str(x) for x in row)
    return " ".join(f"{cell:>{_width(name)}}" for cell, name in zip(cells, Row._fields))


if __name__ == "__main__":
    app.run(main)
