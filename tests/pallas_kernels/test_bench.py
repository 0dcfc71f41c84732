"""The benchmark runs on any machine, and counts the work it divides by."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from oracles.lightning_recurrence import adjoint, draw, recurrence, relative_error

from pallas_kernels import plot, static_report, timing


def bench(*flags):
    return subprocess.run(
        [sys.executable, "-m", "pallas_kernels.bench", *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_every_contestant_gets_a_line_and_the_plot_is_drawn(tmp_path):
    sizes = ["--lengths=16,32", "--heads=1", "--head_dims=8", "--repeats=1"]
    run = bench("--only=xla,softmax", f"--plot={tmp_path}/times.svg", *sizes)
    assert run.returncode == 0, run.stderr
    for name in ("xla", "softmax"):
        lines = [line for line in run.stdout.splitlines() if f"{name} forward" in line]
        assert len(lines) == 2 * 2 and all("GB/s" in line for line in lines)
    assert "measured peaks in float32" in run.stdout
    picture = ElementTree.parse(tmp_path / "times_8_float32.svg").getroot()
    assert len(picture.findall("{*}polyline")) == 2


def test_a_user_is_told_what_there_is_to_time_and_to_compile_for():
    run = bench("--only=cuda")
    assert run.returncode != 0 and "no 'cuda'; choose from ['xla', 'softmax'" in run.stderr
    run = bench("--static", "--chips=v4")
    assert run.returncode != 0 and "no 'v4'; choose from ['v5e', 'v5p'" in run.stderr


def test_work_by_hand():
    """One head of 2 over 3 tokens: 4 D^2 and 14 D^2 FLOPs a token, 2 T D and 7 T D in softmax."""
    shape = timing.Shape(1, 3, 1, 2, "float32")
    forward = timing.Timing("xla", "forward", shape, 1.0)
    assert (forward.flops, forward.moved) == (3 * 16, 4 * 24 + 32)
    both = forward._replace(direction="forward_backward")
    assert (both.flops, both.moved) == (3 * 56, 11 * 24 + 64)
    softmax = both._replace(contestant="softmax")
    assert (softmax.flops, softmax.moved) == (7 * 3 * 3 * 2, 11 * 24)


def test_a_plot_of_one_point():
    picture = plot.log_log_svg({"a<b": [(8, 2.0)]}, title="t", x_label="x", y_label="y")
    assert len(ElementTree.fromstring(picture).findall("{*}circle")) == 1


def test_jobs_are_every_combination_and_decoding_is_one_token():
    jobs = static_report.jobs(chips=["v5e", "h100"], lengths=[64, 128], dims=[64, 96])
    assert len(set(jobs)) == len(jobs) == 2 * 2 * (2 + 2 + 1)
    decoding = [job for job in jobs if job.kernel.endswith("decode")]
    assert {(job.batch, job.length) for job in decoding} == {(64, 1)}


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_torch_baseline_is_lightning_attention(by_hand):
    torch = pytest.importorskip("torch")
    from pallas_kernels import torch_baselines

    (q, k, v, dout), (state, dstate) = draw(0, (1, 64, 2, 8), "float32")
    slopes = np.float32([0.5, 0.01])
    state, dstate = 0 * state, 0 * dstate
    out, _, steps = recurrence(q, k, v, slopes, state, np.ones((1, 64)))
    expected = adjoint(q, k, v, steps, dout, dstate)
    arrays = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v, dout)]
    inputs = [x.requires_grad_() for x in arrays[:3]]
    function = torch_baselines.ByHand.apply if by_hand else torch_baselines.chunked
    actual = function(*inputs, torch.tensor(slopes), 16)
    gradients = torch.autograd.grad(actual, inputs, arrays[3])
    for result, value in zip((actual, *gradients), (out, *expected[:3]), strict=True):
        assert relative_error(result.detach().transpose(1, 2).numpy(), value) <= 1e-5
