"""Every GPU kernel compiles for an H100, in a process with the compiler's own environment."""

import pytest

from pallas_kernels import gpu_compiler, gpu_static

pytestmark = pytest.mark.skipif(
    not gpu_compiler.available(),
    reason="no GPU compiler: run `python -m pallas_kernels.gpu_compiler`",
)


def check(rows, passes):
    """No spills, a resident block, and tensor-core instructions wherever there are products."""
    assert {row.direction for row in rows} == set(passes)
    for row in rows:
        assert row.spilled_bytes == 0, row
        assert row.resident >= 1, row
        assert row.registers <= 255, row
        assert row.shared_kib <= 227, row
        if row.kernel != "one_token":
            assert row.tensor_core > 0, row


@pytest.mark.minutes
def test_the_shapes_of_minimax_m1():
    """64 heads of 128 at both ends of the lengths: every multiprocessor has blocks enough."""
    rows = gpu_static.rows("--lengths=4096,131072", "--heads=64", "--head_dims=128")
    check(rows, ["forward", "backward", "decode"])
    for row in rows:
        assert row.blocks >= 132, row


@pytest.mark.minutes
def test_one_long_sequence_fills_the_multiprocessors():
    rows = gpu_static.rows("--lengths=131072", "--heads=1", "--passes=forward,backward")
    check(rows, ["forward", "backward"])
    assert {row.kernel for row in rows} == {"states", "outputs"}
    assert all(row.blocks >= 132 for row in rows)


@pytest.mark.minutes
def test_all_head_dims_with_segments():
    """Ragged lengths with segments; D = 96 is padded."""
    flags = ["--lengths=1300", "--heads=4", "--head_dims=64,96,128", "--segments"]
    check(gpu_static.rows(*flags), ["forward", "backward", "decode"])


@pytest.mark.minutes
def test_float32_compiles_to_tensor_cores():
    """Three TF32 products each; these spill registers, which `check` would not accept."""
    rows = gpu_static.rows("--lengths=1300", "--heads=4", "--dtypes=float32", "--passes=forward")
    assert {row.kernel for row in rows} == {"states", "outputs"}
    assert all(row.tensor_core > 0 and row.resident >= 1 for row in rows)


@pytest.mark.minutes
def test_small_shapes():
    flags = ["--lengths=2,100", "--heads=2", "--head_dims=16,32", "--decode_batch=1"]
    check(gpu_static.rows(*flags), ["forward", "backward", "decode"])
