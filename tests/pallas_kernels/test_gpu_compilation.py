"""Every GPU kernel compiles for an H100, in a process with the compiler's own environment."""

import pytest

from pallas_kernels import gpu_compiler, static_report

pytestmark = pytest.mark.skipif(not gpu_compiler.available(), reason=gpu_compiler.REMEDY)
PASSES = {f"lightning_attention_{name}" for name in ("forward", "backward")}


def check_rows(**shapes):
    """Compiled with no spills, a resident block, and tensor-core instructions in the products."""
    jobs = static_report.jobs(chips=["h100"], **shapes)
    rows = list(static_report.rows("gpu", jobs))
    assert {row[:1] + row[2:8] for row in rows} == {tuple(job[:-1]) for job in jobs}
    for row in rows:
        assert row.spilled_bytes == 0, row
        assert row.resident >= 1, row
        assert row.registers <= 255, row
        assert row.shared_kib <= 227, row
        if row.program != "one_token":
            assert row.tensor_core > 0, row
    return rows


def test_the_shape_of_minimax_m1():
    """64 heads of 128 and T = 131,072: every multiprocessor has blocks enough."""
    for row in check_rows(lengths=[131072]):
        assert row.blocks >= 132, row


@pytest.mark.minutes
def test_the_shortest_and_the_longest_of_minimax_m1():
    for row in check_rows(lengths=[4096, 131072]):
        assert row.blocks >= 132, row


def test_a_small_shape():
    """A width that is padded, less than two chunks, and several of its heads."""
    check_rows(lengths=[100], heads=2, dims=[96], decode_batch=1)


@pytest.mark.minutes
def test_one_long_sequence_fills_the_multiprocessors():
    rows = check_rows(lengths=[131072], heads=1, kernels=PASSES)
    assert {row.program for row in rows} == {"states", "outputs"}
    assert all(row.blocks >= 132 for row in rows)


@pytest.mark.minutes
def test_all_head_dims_with_segments():
    """Ragged lengths with segments; D = 96 is padded."""
    check_rows(lengths=[1300], heads=4, dims=[64, 96, 128], segments=True)


@pytest.mark.minutes
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_float32_compiles_to_tensor_cores(dim):
    """Three TF32 products each."""
    rows = check_rows(lengths=[1300], heads=4, dims=[dim], dtypes=["float32"])
    assert {row.program for row in rows} == {"states", "outputs", "one_token"}


@pytest.mark.minutes
def test_small_shapes():
    check_rows(lengths=[2, 100], heads=2, dims=[16, 32], decode_batch=1)
