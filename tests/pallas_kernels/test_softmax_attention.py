"""Softmax attention against a float64 loop over queries, and its gradients likewise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.softmax_attention import MODES, causal, draw_arrays, implementation_of, oracle

from pallas_kernels.softmax_attention import merge_attention, softmax_attention

every_mode = pytest.mark.parametrize("mode", MODES)

# kv_batch, repeats, kv_heads, heads a kv head, time, slots, scale, segments
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1.0, False),
    (2, 1, 2, 2, 9, 14, 1.0, True),
    (1, 3, 1, 4, 5, 7, 0.5, False),
    (3, 2, 3, 1, 7, 13, 20.0, True),
]


@st.composite
def problems(draw):
    """Positions and segments in any order, with padding, and rows that see nothing."""
    shape = draw(st.sampled_from(SHAPES))
    kv_batch, repeats, kv_heads, rep, time, slots, scale, segmented = shape
    seed, batch = draw(st.integers(0, 2**16)), kv_batch * repeats
    q, k, v = draw_arrays(seed, batch, kv_batch, time, kv_heads * rep, kv_heads, slots, 4)
    rng = np.random.default_rng(seed + 1)
    labels = causal(batch, time, kv_batch, slots)
    if draw(st.booleans()):
        labels["q_positions"] = rng.integers(-1, slots, (batch, time), np.int32)
        labels["kv_positions"] = rng.integers(-1, slots, (kv_batch, slots), np.int32)
    if segmented:
        n = draw(st.integers(1, 3))
        labels["q_segment_ids"] = np.sort(rng.integers(0, n, (batch, time), np.int32))
        labels["kv_segment_ids"] = np.sort(rng.integers(0, n, (kv_batch, slots), np.int32))
    cotangents = rng.standard_normal(q.shape), rng.standard_normal(q.shape[:3])
    return q, k, v, labels, scale, *cotangents


@functools.cache
def compiled_gradients(mode, implementation, scale):
    """Gradients, and (out, lse), of <out, out_bar> + <lse, lse_bar> over the rows that see any."""

    def loss(q, k, v, labels, out_bar, lse_bar):
        out, lse = softmax_attention(q, k, v, **labels, scale=scale, implementation=implementation)
        finite = jnp.where(jnp.isfinite(lse), lse, 0.0)
        return (out * out_bar).sum() + (finite * lse_bar).sum(), (out, lse)

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


@every_mode
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_output_lse_and_gradients_equal_the_float64_loop(mode, problem):
    """For grouped heads, shared prompts, ragged positions and segments, and rows that see none."""
    q, k, v, labels, scale, out_bar, lse_bar = problem
    expected_out, expected_lse, expected_gradients = oracle(
        q, k, v, labels, scale, out_bar, lse_bar
    )
    with implementation_of(mode) as implementation:
        compiled = compiled_gradients(mode, implementation, scale)
        gradients, (out, lse) = compiled(q, k, v, labels, out_bar, lse_bar)
    np.testing.assert_allclose(out, expected_out, atol=2e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5, rtol=1e-6)
    for name, actual, expected in zip("qkv", gradients, expected_gradients):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * scale, err_msg=f"d{name}")


@every_mode
def test_a_query_that_sees_nothing_gives_zero_and_no_nan(mode):
    q, k, v = draw_arrays(0, 2, 2, 4, 2, 1, 6, 4)
    labels = causal(2, 4, slots=6) | {"kv_positions": np.full((2, 6), -1, np.int32)}

    def loss(q, k, v):
        out, lse = softmax_attention(q, k, v, **labels, implementation=implementation)
        return out.sum(), (out, lse)

    with implementation_of(mode) as implementation:
        gradients, (out, lse) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert not np.any(out) and np.all(lse == -np.inf)
    assert not any(np.any(gradient) for gradient in gradients)


@every_mode
@pytest.mark.parametrize("split", [0, 3, 10])
def test_merged_parts_equal_attention_to_the_whole(mode, split):
    """The prompt's slots and the response's, one part empty at the extremes: values, gradients."""
    q, k, v = draw_arrays(1, 4, 2, 5, 4, 2, 10, 4)
    labels = causal(4, 5, 2, 10)
    out_bar = np.random.default_rng(2).standard_normal(q.shape)
    expected_out, _, expected_gradients = oracle(
        q, k, v, labels, 0.5, out_bar, np.zeros(q.shape[:3])
    )

    def loss(q, k, v):
        slot = np.arange(10)
        parts = []
        for in_part in (slot < split, slot >= split):
            positions = np.where(in_part, labels["kv_positions"], -1)
            part = labels | {"kv_positions": positions}
            parts.append(softmax_attention(q, k, v, **part, implementation=implementation))
        out = merge_attention(parts)
        return (out * out_bar).sum(), out

    with implementation_of(mode) as implementation:
        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    for name, actual, expected in zip("qkv", gradients, expected_gradients):
        np.testing.assert_allclose(actual, expected, atol=1e-5, err_msg=f"d{name}")


def test_merge_of_empty_parts_is_zero_with_zero_gradients():
    out, lse = jnp.ones((1, 2, 3, 4)), jnp.full((1, 2, 3), -jnp.inf)

    def merged(out, lse):
        return merge_attention([(out, lse), (out, lse)]).sum()

    value, gradients = jax.value_and_grad(merged, (0, 1))(out, lse)
    assert value == 0 and not any(np.any(gradient) for gradient in gradients)


def test_blocks_that_no_query_sees_are_never_read():
    """NaN in an empty tail, in the future and in another segment stays out of values, gradients."""
    q, k, v = draw_arrays(3, 1, 1, 20, 2, 1, 40, 4)
    labels = causal(1, 20)
    labels["kv_positions"] = np.r_[np.arange(20), np.full(20, -1)][None].astype(np.int32)
    labels["q_segment_ids"] = np.repeat([[1, 2]], 10, axis=1).astype(np.int32)
    labels["kv_segment_ids"] = np.r_[labels["q_segment_ids"][0], np.ones(20)][None].astype(np.int32)
    clean = np.arange(10, 15)  # the first half of segment 2, in blocks of 5 positions of 2 heads
    poisoned = np.isin(np.arange(40), [*range(5), *range(15, 40)])
    k, v = (np.where(poisoned[:, None], np.nan, x).astype(np.float32) for x in (k, v))

    def loss(q, k, v, labels):
        out, _ = softmax_attention(q, k, v, **labels, implementation=implementation)
        return out[:, clean].sum(), out

    with implementation_of(MODES[2], 50, 5, 10) as implementation:
        _, out = jax.jit(loss)(q, k, v, labels)
        labels["q_positions"] = np.where(np.isin(np.arange(20), clean), labels["q_positions"], -1)
        gradients, _ = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v, labels)
    poisoned_rows = [t for t in range(20) if t not in clean]
    assert np.isfinite(out[:, clean]).all() and np.isnan(out[:, poisoned_rows]).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.any(gradients[1][:, :, clean]) and not np.any(gradients[1][:, :, poisoned])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "xls"}, "did you mean 'xla'"),
        ({"q": np.zeros((2, 4, 3, 8))}, "heads of q"),
        ({"q": np.zeros((3, 4, 4, 8))}, "batch of q"),
        ({"q": np.zeros((2, 4, 4, 6))}, r"q must be \[B, T, H, D\]"),
        ({"v": np.zeros((2, 2, 5, 8))}, "k and v must agree"),
        ({"kv_positions": np.zeros((2, 4))}, "kv_positions must be"),
        ({"q_segment_ids": np.zeros((2, 4))}, "both q_segment_ids and kv_segment_ids"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(change, message):
    arguments = {"q": np.zeros((2, 4, 4, 8)), "k": np.zeros((2, 2, 6, 8))}
    arguments |= {"v": arguments["k"], **causal(2, 4, slots=6)} | change
    with pytest.raises(ValueError, match=message):
        softmax_attention(**arguments)
