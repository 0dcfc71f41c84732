"""Rollouts whose cache must stay within a share of the memory."""

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.errors import UserError
from mmrl.models import Cache, Decoder
from mmrl.rollout import SamplingConfig, generate
from mmrl.rollout import memory as rollout_memory
from mmrl.rollout.memory import (
    cache_bytes,
    even_batches,
    generate_within,
    prompt_batches,
    rows_within,
)
from mmrl.sharding import MeshConfig, abstract_mesh

SAMPLING = SamplingConfig(group_size=2, max_new_tokens=3)
PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12], [13, 14, 15]]


def test_cache_bytes_are_those_of_the_arrays():
    cache = Cache.create(HYBRID, 3, 4).fork(2, 5)
    assert cache_bytes(HYBRID, 3, 2, (4, 5)) == sum(x.nbytes for x in jax.tree.leaves(cache))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_most_rows_within_the_budget_are_taken(rows):
    exact = cache_bytes(HYBRID, rows, 2, (4, 3))
    assert rows_within(exact, HYBRID, 100, SAMPLING, 4) == rows
    if rows > 1:
        assert rows_within(exact - 1, HYBRID, 100, SAMPLING, 4) == rows - 1


def test_no_more_rows_are_taken_than_there_are():
    assert rows_within(1e12, HYBRID, 7, SAMPLING, 4) == 7


def test_a_budget_that_holds_no_prompt_is_refused_with_the_sizes():
    with pytest.raises(UserError, match=r"MiB and may have 0\.0: raise cache_memory_fraction"):
        rows_within(100.0, HYBRID, 7, SAMPLING, 4)


@pytest.mark.parametrize(
    "total, largest, multiple", [(10, 4, 1), (7, 3, 1), (32, 9, 4), (5, 8, 4), (10, 3, 4)]
)
def test_batches_cover_all_rows_within_the_limit_and_are_as_few_as_can_be(total, largest, multiple):
    parts = even_batches(total, largest, multiple)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= largest
    assert all(size % multiple == 0 for size in sizes[:-1]) or largest < multiple
    usable = largest // multiple * multiple or largest
    assert len(parts) == -(-total // usable)
    assert len(set(sizes)) <= 2


def test_batches_use_all_devices_that_the_cache_is_cut_over():
    """Rows over data and fsdp, keys and values over tensor; a prompt's group covers two devices."""
    mesh = abstract_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    one = cache_bytes(HYBRID, 1, 2, (4, 3))
    parts = prompt_batches(0.5, one / 2, HYBRID, 7, SAMPLING, 4, "decode", mesh)
    assert [part.stop - part.start for part in parts] == [2, 2, 2, 1]
    assert prompt_batches(None, 0.0, HYBRID, 7, SAMPLING, 4, "decode", mesh) == [slice(0, 7)]


def test_several_batches_give_the_responses_of_one(monkeypatch):
    model = Decoder(HYBRID, nnx.Rngs(0))
    key = jax.random.key(3)
    limits = np.asarray([[1, 1], [3, 3], [2, 2], [3, 3], [3, 2]], np.int32)
    temperatures = np.asarray([0.5, 1.0, 0.5, 2.0, 1.0], np.float32)
    arrays = dict(max_new_tokens=limits, temperatures=temperatures)
    whole = generate(model, PROMPTS, SAMPLING, key, **arrays)
    two_prompts = cache_bytes(HYBRID, 2, 2, (3, 3))
    monkeypatch.setattr(rollout_memory, "device_memory", lambda: 2 * two_prompts)
    calls = []
    monkeypatch.setattr(
        rollout_memory,
        "generate",
        lambda model, prompts, *rest, **more: (
            calls.append(len(prompts[0])) or generate(model, prompts, *rest, **more)
        ),
    )
    parts = generate_within(0.5, model, PROMPTS, SAMPLING, key, **arrays)
    assert calls == [2, 2, 1]
    for name in ("tokens", "lengths", "status", "temperatures", "prompt_tokens"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(parts.behaviour_logprobs, whole.behaviour_logprobs, atol=1e-5)
