"""What an H100 would run of the Triton kernels, from compiled code: no GPU is needed.

For each kernel and shape, program by program: FLOPs and HBM bytes, the floor in microseconds (the
larger of memory and matrix time); the blocks of its grid and how many are resident on one of the
132 multiprocessors, with the share of its threads that they are; and a thread's registers, a
thread's spilled bytes and a block's shared memory, from ptxas, with its tensor-core instructions.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import gpu_compiler
from pallas_kernels.gpu_compiler import Kernel
from pallas_kernels.lightning_attention import triton

CHIPS = ("h100",)
# Published figures of the H100 SXM, dense; float32 takes three TF32 products.
_BANDWIDTH, _PEAK = 3.35e12, {"bfloat16": 989e12, "float16": 989e12, "float32": 495e12 / 3}
_THREADS = 2048  # that a multiprocessor holds


class Row(NamedTuple):
    """One line of the report."""

    kernel: str
    program: str  # what the kernel launches: a kernel takes several
    chip: str
    batch: int
    length: int
    heads: int
    dim: int
    dtype: str
    gflops: float
    hbm_mib: float
    memory_us: float
    matrix_us: float
    blocks: int
    resident: int  # blocks on a multiprocessor
    occupancy: float  # their share of the threads that it holds
    threads: int
    registers: int
    spilled_bytes: int
    shared_kib: float
    tensor_core: int


def figures(chip: str) -> str:
    """The published figures that a chip's floor is computed from."""
    return (
        f"{chip}: {_BANDWIDTH / 1e9:,.0f} GB/s, {_PEAK['bfloat16'] / 1e12:,.0f} TFLOP/s in "
        f"bfloat16, {_PEAK['float32'] / 1e12:,.0f} in float32 as three TF32 products"
    )


def analyse(
    kernel: str,
    chip: str,
    batch: int,
    length: int,
    heads: int,
    dim: int,
    dtype: str,
    segments: bool,
) -> Iterator[Row]:
    """Compiles one kernel; the process must be in `gpu_compiler.environment`."""
    shape = jax.ShapeDtypeStruct
    tokens = shape((batch, length, heads, dim), dtype)
    state, slopes = shape((batch, heads, dim, dim), jnp.float32), shape((heads,), jnp.float32)
    ids = shape((batch, length), jnp.int32) if segments else None
    operands = [tokens, tokens, tokens, slopes, state, ids]
    operands += [tokens, state] if KERNELS[kernel] is _backward else []
    for program in gpu_compiler.kernels_of(KERNELS[kernel], *operands):
        flops, moved = _work(kernel, program, (batch, length, heads, dim), jnp.dtype(dtype))
        yield Row(
            kernel,
            program.name.removeprefix("lightning_attention_"),
            chip,
            *(batch, length, heads, dim, dtype),
            gflops=flops / 1e9,
            hbm_mib=moved / 2**20,
            memory_us=1e6 * moved / _BANDWIDTH,
            matrix_us=1e6 * flops / _PEAK[dtype],
            blocks=program.blocks,
            resident=program.resident,
            occupancy=program.resident * program.threads / _THREADS,
            threads=program.threads,
            registers=program.registers,
            spilled_bytes=program.spilled_bytes,
            shared_kib=program.shared_bytes / 1024,
            tensor_core=program.tensor_core,
        )


def _backward(q, k, v, slopes, state, ids, dout, dstate):
    def function(q, k, v, state):
        return triton.lightning_attention(q, k, v, slopes, state, ids)

    return jax.vjp(function, q, k, v, state)[1]((dout, dstate))


KERNELS: dict[str, Callable] = {
    "lightning_attention_forward": triton.lightning_attention,
    "lightning_attention_backward": _backward,
    "lightning_attention_decode": triton.lightning_attention,  # of one token
}


def _work(
    kernel: str, program: Kernel, shape: tuple[int, ...], dtype: jnp.dtype
) -> tuple[int, int]:
    """FLOPs of its matrix products, and bytes that must be moved.

    What meets bfloat16 tokens comes in two parts in the forward pass.
    """
    batch, length, heads, dim = shape
    tokens, states = batch * length * heads, batch * heads * dim * dim * 4
    if program.name.endswith("one_token"):
        return 0, 2 * states + 4 * tokens * dim * dtype.itemsize
    parts = 2 if kernel == "lightning_attention_forward" and dtype != jnp.float32 else 1
    splits = triton.number_of_splits(shape, dtype)
    if program.name.endswith("states"):
        return 2 * parts * tokens * dim**2, 2 * tokens * dim * dtype.itemsize + splits * states
    chunk = triton.Blocks.of(dtype, dim).chunk
    products = 4 * parts * dim**2 + 2 * (1 + parts) * chunk * dim
    return tokens * products, 4 * tokens * dim * dtype.itemsize + (splits + 1) * states
