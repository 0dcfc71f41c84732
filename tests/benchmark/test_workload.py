"""The benchmark's counts of work, by hand."""

import dataclasses

import numpy as np
import pytest

from mmrl.benchmark import growth
from mmrl.benchmark.workload import QWEN2, WORKLOADS, Workload, forward_flops

LAYER = 256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 1024  # q, out, k, v, and the MLP
HEAD = 1024 * 256


def test_the_forward_flops_of_a_are_those_counted_by_hand():
    weights = 2 * (504 + 8192) * 6 * LAYER + 2 * 8192 * HEAD
    prompts = 8 * sum(range(63))
    responses = 64 * sum(63 + t for t in range(128))
    attention = 4 * 6 * 8 * 32 * (prompts + responses)
    assert forward_flops(WORKLOADS["A"], 8192) == pytest.approx(weights + attention, rel=5e-3)


def test_random_limits_span_the_lengths_of_c():
    rng = np.random.default_rng(0)
    limits = np.concatenate([WORKLOADS["C"].limits(rng).ravel() for _ in range(40)])
    assert (limits.min(), limits.max()) == (8, 128)
    assert np.all(Workload(new_tokens=7).limits(rng) == 7)


def test_variants_change_one_size_and_a_tokens_own_experts_stay():
    for name, points in growth.variants().items():
        assert [size for size, _ in points] == sorted({size for size, _ in points})
        kept = {dataclasses.replace(w, samples=0, new_tokens=0, model=QWEN2) for _, w in points}
        assert len(kept) == 1, name
        assert len({w.model.experts_per_token for _, w in points}) == 1


def test_the_exponent_of_a_square_is_two():
    assert growth.slope([2, 4, 8], [0.4, 1.6, 6.4]) == pytest.approx(2)
