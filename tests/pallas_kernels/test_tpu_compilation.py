"""The TPU compiler accepts the kernels for every chip, and what it schedules is near the floor."""

import csv
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from pallas_kernels import static_report, tpu_schedule, tpu_static

needs_compiler = pytest.mark.skipif(not tpu_schedule.available(), reason=tpu_schedule.REMEDY)
BARS = {
    "lightning_attention_forward": 0.75,
    "lightning_attention_backward": 0.70,
    "lightning_attention_decode": 0.80,
}


def test_floor_by_hand():
    """A chunk of 128 of one head of 128 on v5p: four 32 KiB arrays, seven products of 128 rows."""
    program = tpu_static.KERNELS["lightning_attention_forward"](
        1, 4096, 64, 128, jnp.dtype("bfloat16")
    )
    chunks, v5p = len(program.products) / 7, tpu_static.CHIPS["v5p"]
    assert program.products[:2] == [(128, 128, 128)] * 2
    assert program.hbm_bytes / chunks / v5p.bytes_a_cycle == pytest.approx(166, rel=0.01)
    assert all(chip.rows == pytest.approx(4, rel=0.01) for chip in tpu_static.CHIPS.values())


def test_bundles_of_the_grid_loop():
    """Counted from the loop's first bundle to its last, without what stands before and after."""
    lines = ["   0   :  { a }", "  0x1 LB: > { b }", "  0x2   : > { c }", "  0x3   : > { d }"]
    assert tpu_schedule.loop_bundles("\n".join([*lines, "  0x4   :  { e }"])) == 3


def test_vmem_that_holds_whole_operands():
    """Arrays alive while the kernel runs, up to the end of the last; one freed before is not."""
    order = "time,instruction_name\n0,x\n1,kernel.1\n2,copy"
    columns = "buffer_id,size,offset,start_time,end_time"
    allocations = [columns, "0,4096,0,0,1", "1,512,4096,1,2", "2,8192,0,2,2", "3,65536,8192,0,0"]
    assert tpu_schedule.placed_bytes(order, "\n".join(allocations), "kernel") == 4608
    assert tpu_schedule.placed_bytes(order, columns, "kernel") == 0


@needs_compiler
@pytest.mark.parametrize("chip", tpu_static.CHIPS)
def test_m1_shapes_are_near_the_floor(chip):
    """64 heads of 128 in bfloat16, T from 4,096 to 131,072, and decoding for 64 rows."""
    jobs = static_report.jobs(chips=[chip], lengths=[4096, 131072])
    rows = list(static_report.rows("tpu", jobs))
    assert {row.kernel for row in rows} == set(BARS)
    for row in rows:
        assert row.floor_by_bundles >= BARS[row.kernel], row
        assert 0 < row.vmem_mib < row.vmem_limit_mib, row


def check_small_shapes(chip, **shapes):
    jobs = static_report.jobs(chips=[chip], heads=3, decode_batch=2, **shapes)
    rows = list(static_report.rows("tpu", jobs))
    assert len(rows) == len(jobs)
    for row in rows:
        assert 0 < row.vmem_mib < row.vmem_limit_mib, row


@needs_compiler
@pytest.mark.parametrize("chip", tpu_static.CHIPS)
def test_a_small_shape_compiles(chip):
    """Padded width, ragged length, heads that do not fill a grid step; both dtypes."""
    check_small_shapes(chip, lengths=[300], dims=[96], dtypes=["float32", "bfloat16"])


@needs_compiler
@pytest.mark.minutes
@pytest.mark.parametrize("chip", tpu_static.CHIPS)
def test_small_shapes_compile(chip):
    """Every head width in both dtypes, a row shorter than a chunk and a ragged one."""
    dims, dtypes = [64, 96, 128], ["float32", "bfloat16"]
    check_small_shapes(chip, lengths=[50, 300], dims=dims, dtypes=dtypes)


PROJECTED = """
import jax, jax.numpy as jnp
from pallas_kernels import tpu_schedule
from pallas_kernels.lightning_attention import mosaic_tpu

def layer(x, w_q, w_k, w_v, w_out, slopes, state):
    q, k, v = (jax.nn.silu(x @ w).reshape(1, 4096, 16, 128) for w in (w_q, w_k, w_v))
    out, state = mosaic_tpu.lightning_attention(q, k, v, slopes, state, None)
    return out.reshape(1, 4096, 2048) @ w_out, state

shape = jax.ShapeDtypeStruct
x, w = shape((1, 4096, 2048), jnp.bfloat16), shape((2048, 2048), jnp.bfloat16)
slopes, state = shape((16,), jnp.float32), shape((1, 16, 128, 128), jnp.float32)
tpu_schedule.compile_for("v5p:2x2x1", layer, x, w, w, w, w, slopes, state)
"""


@needs_compiler
def test_no_copy_between_projections_and_the_kernel(tmp_path):
    """[B, T, H, D] is folded to lanes by undoing the reshape after the projection: no transpose."""
    environment = tpu_schedule.environment(tmp_path)
    subprocess.run([sys.executable, "-c", PROJECTED], env=environment, check=True)
    (listing,) = tmp_path.glob("*-memory-space-assignment-bufferinfo.txt")
    with listing.open(newline="") as file:
        buffers = {row["buffer_name"]: int(row["size"]) for row in csv.DictReader(file)}
    large = [name for name, size in buffers.items() if size >= 2 * 4096 * 2048]
    assert any("lightning_attention_forward" in name for name in large)
    assert not [name for name in large if re.search("copy|transpose|reshape", name)]
