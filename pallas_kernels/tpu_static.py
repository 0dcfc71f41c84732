"""How near the TPU kernels come to the hardware, from compiled code: no TPU is needed.

For each kernel, chip and shape: FLOPs and HBM bytes of a grid step; its floor in cycles, the
larger of memory time at the published bandwidth and matrix-unit time in whole passes of the
array; and the bundles that the compiler scheduled for the step, a cycle each without stalls.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import tpu_schedule
from pallas_kernels.lightning_attention import mosaic_tpu_tiling as tiling
from pallas_kernels.lightning_attention.mosaic_tpu_backward import backward
from pallas_kernels.lightning_attention.mosaic_tpu_decode import decode, step_heads
from pallas_kernels.lightning_attention.mosaic_tpu_forward import forward


class Chip(NamedTuple):
    """Published figures (cloud.google.com/tpu/docs); the clock is what they imply, see `rows`."""

    topology: str
    cores: int  # TensorCores, which share the bandwidth
    clock: float  # Hz
    bandwidth: float  # HBM bytes/s of the chip
    peak: float  # bfloat16 FLOP/s of the chip
    array: int  # rows and columns of a matrix unit
    vmem_bytes: int  # of a TensorCore

    @property
    def rows(self) -> float:
        """Rows of 1 x array x array products a cycle, in all matrix units of a TensorCore."""
        return self.peak / (self.cores * self.clock * 2 * self.array**2)

    @property
    def bytes_a_cycle(self) -> float:
        """HBM bytes a cycle for one TensorCore."""
        return self.bandwidth / (self.cores * self.clock)


CHIPS = {
    "v5e": Chip("v5e:2x2", 1, 1.5e9, 819e9, 197e12, 128, 128 << 20),
    "v5p": Chip("v5p:2x2x1", 2, 1.75e9, 2765e9, 459e12, 128, 64 << 20),
    "v6e": Chip("v6e:2x2", 1, 1.75e9, 1640e9, 918e12, 256, 128 << 20),
}


class Program(NamedTuple):
    """A kernel at a shape; bytes and products are those of one grid step."""

    function: Callable
    operands: list[jax.ShapeDtypeStruct]
    hbm_bytes: int
    products: list[tuple[int, int, int]]  # [M, K] x [K, N]
    passes: int  # of the matrix unit for each product, by precision


class Row(NamedTuple):
    """One line of the report: a grid step's work, its floor and its schedule, in cycles."""

    kernel: str
    chip: str
    batch: int
    length: int
    heads: int
    dim: int
    dtype: str
    mflops: float
    hbm_kib: float
    memory_cycles: float
    matrix_cycles: float
    floor_cycles: float  # the larger of the two
    bundles: int
    floor_by_bundles: float
    vmem_mib: float
    vmem_limit_mib: float
    spilled_kib: float


def figures(chip: str) -> str:
    """The published figures that a chip's floor is computed from."""
    x = CHIPS[chip]
    return (
        f"{chip}: {x.bandwidth / 1e9:,.0f} GB/s, {x.peak / 1e12:,.0f} TFLOP/s in bfloat16, "
        f"{x.cores} TensorCore(s) at {x.clock / 1e9} GHz: {x.bytes_a_cycle:,.0f} bytes and "
        f"{x.rows:.1f} rows of a {x.array} x {x.array} product a cycle and core; float32: 6 passes"
    )


def analyse(
    kernel: str, chip: str, batch: int, length: int, heads: int, dim: int, dtype: str, _: bool
) -> Iterator[Row]:
    """Compiles one kernel for one chip; the process must be in `tpu_schedule.environment`.

    With segment ids or without (the last argument), the kernels are the same.
    """
    x = CHIPS[chip]
    with tpu_schedule.lowering_for(x.topology):
        program = KERNELS[kernel](batch, length, heads, dim, jnp.dtype(dtype))
    operands = program.operands
    schedule = tpu_schedule.schedule_of(kernel, x.topology, program.function, *operands)
    memory = program.hbm_bytes / x.bytes_a_cycle
    rows = sum(m * math.ceil(k / x.array) * math.ceil(n / x.array) for m, k, n in program.products)
    matrix = program.passes * rows / x.rows
    floor = max(memory, matrix)
    yield Row(
        kernel,
        chip,
        *(batch, length, heads, dim, dtype),
        mflops=sum(2 * m * k * n for m, k, n in program.products) / 1e6,
        hbm_kib=program.hbm_bytes / 1024,
        memory_cycles=memory,
        matrix_cycles=matrix,
        floor_cycles=floor,
        bundles=schedule.bundles,
        floor_by_bundles=floor / schedule.bundles,
        vmem_mib=schedule.vmem_bytes / 2**20,
        vmem_limit_mib=x.vmem_bytes / 2**20,
        spilled_kib=schedule.spilled_bytes / 1024,
    )


def _chunked(kernel: Callable, batch: int, length: int, heads: int, dim: int, dtype) -> Program:
    backwards = kernel is backward
    tiles = tiling.tiling((batch, length, heads, dim), dtype)
    width, chunk, lanes = tiles.groups * tiling.LANES, tiles.chunk, tiling.LANES
    shape = jax.ShapeDtypeStruct
    tokens = shape((batch, tiles.length, width), dtype)
    operands = [
        *[tokens] * (4 if backwards else 3),
        shape((batch, tiles.groups, lanes, lanes), jnp.float32),
        shape((tiles.heads,), jnp.float32),
        shape((1, width), jnp.float32),
        shape((batch, 2, tiles.length), jnp.float32),
    ]
    heads_of_group = lanes // tiles.dim
    scores = [(chunk, lanes, chunk)] * heads_of_group
    of_scores = [(chunk, chunk, lanes)] * heads_of_group + [(chunk, lanes, lanes)]
    update = [(lanes, chunk, lanes)]
    if backwards:
        group = 2 * (scores + of_scores) + update
    else:  # what meets bfloat16 tokens comes in two parts
        group = scores + (1 if dtype == jnp.float32 else 2) * (of_scores + update)
    arrays = 6 if backwards else 4
    block = tiles.block(arrays)
    moved = arrays * tiles.step_groups * lanes * dtype.itemsize + 2 * 4
    return Program(
        function=functools.partial(kernel, tiles=tiles),
        operands=operands,
        hbm_bytes=block * moved,
        products=group * (tiles.step_groups * block // chunk),
        passes=6 if dtype == jnp.float32 else 1,
    )


def _decode(batch: int, length: int, heads: int, dim: int, dtype) -> Program:
    del length
    shape = jax.ShapeDtypeStruct
    vectors, state = shape((batch, heads, dim), dtype), (batch, heads, dim, dim)
    scalars = [shape((heads,), jnp.float32), shape((batch,), jnp.float32)]
    moved = 2 * dim * dim * 4 + 4 * dim * dtype.itemsize
    return Program(
        function=decode,
        operands=[vectors, vectors, vectors, shape(state, jnp.float32), *scalars],
        hbm_bytes=step_heads(heads) * moved,
        products=[],  # a vector a head is no work for a matrix unit
        passes=1,
    )


KERNELS: dict[str, Callable[..., Program]] = {
    "lightning_attention_forward": functools.partial(_chunked, forward),
    "lightning_attention_backward": functools.partial(_chunked, backward),
    "lightning_attention_decode": _decode,
}
