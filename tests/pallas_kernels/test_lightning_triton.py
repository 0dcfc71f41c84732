"""The GPU kernels against the recurrence: interpreted, and as they are with JAX_PLATFORMS=cuda.

`test_gpu_compilation.py` compiles them without a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.lightning_recurrence import check_kernel, draw, relative_error

from pallas_kernels.lightning_attention import triton

INTERPRET = jax.default_backend() != "gpu"


@functools.partial(jax.jit, static_argnames="splits")
def with_gradients(q, k, v, slopes, state, segment_ids, dout, dstate, splits):
    def function(q, k, v, state):
        return triton.lightning_attention(
            q, k, v, slopes, state, segment_ids, splits=splits, interpret=INTERPRET
        )

    results, pullback = jax.vjp(function, q, k, v, state)
    return results, pullback((dout, dstate))


def check(shape, *arguments, splits=None, **options):
    check_kernel(functools.partial(with_gradients, splits=splits), shape, *arguments, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_head_dims_and_dtypes_with_a_ragged_last_chunk(dim, dtype):
    """T = 300 is four chunks and a part; D = 96 is padded to a block of 128."""
    check((1, 300, 2, dim), dtype)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("segmented", [False, True])
def test_any_number_of_splits(splits, segmented):
    """States pass between the splits in both directions, and stop at segments."""
    ids = np.repeat([[1, 1, 2, 0, 2, 2, 3, 3, 0]], 50, axis=1).astype(np.int32)
    check((1, 450, 2, 16), segment_ids=ids if segmented else None, splits=splits)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128])
def test_lengths_around_a_chunk(length):
    check((2, length, 1, 16))


@pytest.mark.parametrize("slope", [1.4, 1.0, 1e-5 * 2**-8])
def test_decays_from_steep_to_almost_none(slope):
    check((1, 400, 1, 16), slopes=[slope], splits=2)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    layout=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=12),
    length=st.sampled_from([1, 150]),
    splits=st.sampled_from([1, 3]),
    slope=st.sampled_from([1.0, 1e-5]),
)
def test_segments_and_padding_anywhere(seed, layout, length, splits, slope):
    ids = [segment for segment, size in layout for _ in range(size)]
    segments = np.array((ids + [0] * 2 * length)[: 2 * length], np.int32).reshape(2, length)
    slopes = [slope, 0.3 * slope]
    check((2, length, 2, 16), segment_ids=segments, seed=seed, splits=splits, slopes=slopes)


@pytest.mark.parametrize("length", [1, 100])
def test_garbage_in_padding_stays_there(length):
    (q, k, v, dout), (state, dstate) = draw(1, (2, length, 1, 16), "float32")
    segments = np.ones((2, length), np.int32)
    segments[0, -1] = 0
    q, k, v = (x.at[0, -1].set(jnp.nan) for x in (q, k, v))
    results, gradients = with_gradients(
        q, k, v, np.float32([0.5]), state, segments, dout, dstate, splits=2
    )
    for array in (*results, *gradients):
        assert np.isfinite(array).all()


@pytest.mark.minutes
@pytest.mark.parametrize("slope", [1.0, 1e-5 * 2**-8])
def test_65536_tokens_stay_finite_and_right(slope):
    """The last token after 65,536 equals the closed sum over what its decay still lets it see."""
    rng = np.random.default_rng(7)
    q, k, v = rng.standard_normal((3, 1, 65536, 1, 16)).astype(np.float32)
    slopes, state = np.float32([slope]), np.zeros((1, 1, 16, 16), np.float32)
    out, _ = triton.lightning_attention(q, k, v, slopes, state, None, interpret=INTERPRET)
    weights = np.exp(-np.float64(slopes[0]) * np.arange(65535, -1, -1))
    expected = (weights * (k[0, :, 0].astype(np.float64) @ q[0, -1, 0])) @ v[0, :, 0]
    assert np.isfinite(out).all()
    assert relative_error(out[0, -1, 0], expected) <= 1e-4


@pytest.mark.parametrize(
    ("shape", "splits"),
    [
        ((1, 131072, 1, 128), 66),
        ((1, 131072, 64, 128), 1),
        ((1, 131072, 8, 64), 16),
        ((64, 4096, 64, 128), 1),
        ((1, 600, 1, 128), 1),
    ],
)
def test_splits_give_every_multiprocessor_two_programs(shape, splits):
    """Unless the sequence is too short to be worth it, or the rows and heads are enough."""
    assert triton.number_of_splits(shape, jnp.bfloat16) == splits


def test_a_user_is_told_what_the_kernels_cannot_take():
    wide = jax.ShapeDtypeStruct((1, 8, 1, 256), jnp.float32)
    assert "head_dim of at most 128, not 256" in triton.unsupported(wide)
    assert "not float64" in triton.unsupported(jax.ShapeDtypeStruct((1, 8, 1, 8), np.float64))
    assert triton.unsupported(jax.ShapeDtypeStruct((1, 8, 1, 96), jnp.bfloat16)) is None
    q = jnp.zeros((1, 8, 1, 256))
    with pytest.raises(ValueError, match="head_dim"):
        triton.lightning_attention(q, q, q, jnp.ones(1), jnp.zeros((1, 1, 256, 256)), None)
