"""Grouped matmul against a float64 loop over groups, and its gradients likewise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.grouped_matmul import grouped_matmul

IMPLEMENTATIONS = [None, "reference", "ragged_dot", "xla"]
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def oracle(x, w, sizes, out_bar):
    """out, dx and dw in float64, one group at a time."""
    x, w, out_bar = (np.asarray(a, np.float64) for a in (x, w, out_bar))
    out, dx, dw = np.zeros(out_bar.shape), np.zeros_like(x), np.zeros_like(w)
    end = 0
    for group, size in enumerate(sizes):
        rows = slice(end, end + size)
        out[rows] = x[rows] @ w[group]
        dx[rows] = out_bar[rows] @ w[group].T
        dw[group] = x[rows].T @ out_bar[rows]
        end += size
    return out, dx, dw


def draw_arrays(seed, n_rows, n_groups, k=5, m=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, k)).astype(np.float32)
    w = rng.standard_normal((n_groups, k, m)).astype(np.float32)
    return x, w, rng.standard_normal((n_rows, m)).astype(np.float32)


@partial(jax.jit, static_argnames="implementation")
def value_and_gradients(x, w, sizes, out_bar, implementation):
    def loss(x, w):
        out = grouped_matmul(x, w, sizes, implementation=implementation)
        return (out * out_bar).sum(), out

    gradients, out = jax.grad(loss, (0, 1), has_aux=True)(x, w)
    return out, *gradients


def assert_equals_oracle(x, w, sizes, out_bar, implementation):
    actual = value_and_gradients(x, w, sizes, out_bar, implementation)
    expected = oracle(x, w, sizes, out_bar)
    for name, got, wanted in zip(("out", "dx", "dw"), actual, expected):
        np.testing.assert_allclose(got, wanted, atol=2e-4, err_msg=name)


@every_implementation
@settings(max_examples=25, deadline=None)
@given(
    ends=st.sampled_from([1, 2, 5]).flatmap(
        lambda n: st.lists(st.integers(0, 60), min_size=n, max_size=n)
    ),
    seed=st.integers(0, 2**16),
)
def test_output_and_gradients_equal_the_float64_loop(implementation, ends, seed):
    """For ragged and empty groups; the rows past the last group are 0 and have no gradient."""
    sizes = np.diff(sorted(ends), prepend=0).astype(np.int32)
    x, w, out_bar = draw_arrays(seed, 60, len(sizes))
    assert_equals_oracle(x, w, sizes, out_bar, implementation)


@every_implementation
@pytest.mark.parametrize(
    "sizes",
    [
        [700, 0],
        [0, 700],
        [1, 698, 1],
        [0] * 31 + [400],
        [13] * 32,
        [257, 128, 0, 129],
        [0, 0],
    ],
)
def test_skewed_groups_over_many_tiles(implementation, sizes):
    x, w, out_bar = draw_arrays(0, 700, len(sizes))
    assert_equals_oracle(x, w, np.array(sizes, np.int32), out_bar, implementation)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_nan_row_stays_in_its_row_and_its_group(implementation):
    """Tiles run past the end of their group without a trace, and past the last row."""
    sizes = np.array([5, 6, 0, 7], np.int32)
    x, w, out_bar = draw_arrays(1, 20, 4)
    expected, expected_dx, expected_dw = oracle(x, w, sizes, out_bar)
    x[[7, 19]] = np.nan
    out, dx, dw = value_and_gradients(x, w, sizes, out_bar, implementation)
    rows, groups = np.arange(20) != 7, [0, 2, 3]
    np.testing.assert_allclose(np.asarray(out)[rows], expected[rows], atol=1e-5)
    assert np.isnan(out[7]).all()
    np.testing.assert_allclose(dx, expected_dx, atol=1e-5)
    if implementation == "xla":
        np.testing.assert_allclose(np.asarray(dw)[groups], expected_dw[groups], atol=1e-5)
        assert np.isnan(dw[1]).all()


@every_implementation
def test_bfloat16_products_accumulate_in_float32(implementation):
    """A sum of 1024 ones is exact; in bfloat16 it would stop at 256."""
    x, w = jnp.ones((24, 1024), jnp.bfloat16), jnp.ones((2, 1024, 4), jnp.bfloat16)
    sizes = np.array([4, 16], np.int32)
    out, dx, dw = value_and_gradients(x, w, sizes, np.ones((24, 4)), implementation)
    assert out.dtype == dx.dtype == dw.dtype == jnp.bfloat16
    assert (out[:20] == 1024).all() and (out[20:] == 0).all()
    assert (dw[0] == 4).all() and (dw[1] == 16).all()


def test_group_sizes_of_a_while_loop_and_checkpoint_may_be_traced():
    """A rematerialised expert in a scan whose group sizes change from step to step."""
    x, w, _ = draw_arrays(2, 12, 3, k=4, m=4)
    sizes = np.array([[4, 4, 4], [0, 12, 0]], np.int32)
    first = oracle(x, w, sizes[0], x)[0]
    expected, middle_bar, _ = oracle(first, w, sizes[1], np.ones_like(x))
    _, x_bar, _ = oracle(x, w, sizes[0], middle_bar)

    @jax.checkpoint
    def layer(x, sizes):
        return grouped_matmul(x, w, sizes), None

    def loss(x):
        out, _ = jax.lax.scan(layer, x, sizes)
        return out.sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(gradient, x_bar, atol=1e-4)


@pytest.mark.parametrize(("platform", "has_ragged_dot"), [("cpu", False), ("tpu", True)])
def test_the_default_follows_the_platform_compiled_for(platform, has_ragged_dot):
    """A TPU program compiled ahead of time on a CPU host has the TPU's product."""
    x, w, out_bar = draw_arrays(3, 12, 3)

    def loss(x, w, sizes):
        return (grouped_matmul(x, w, sizes) * out_bar).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, w, np.array([4, 4, 4], np.int32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("ragged_dot" in text) == has_ragged_dot
    assert ("while" in text) != has_ragged_dot


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"implementation": "raged_dot"}, "did you mean 'ragged_dot'"),
        ({"group_sizes": np.zeros(3, np.int32)}, r"group_sizes \[E\]"),
        ({"x": np.zeros((6, 4))}, r"x must be \[N, K\]"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(arguments, message):
    defaults = {"x": np.zeros((6, 5)), "w": np.zeros((2, 5, 3))}
    defaults |= {"group_sizes": np.array([3, 3], np.int32)}
    with pytest.raises(ValueError, match=message):
        grouped_matmul(**(defaults | arguments))
