"""The TPU kernels, interpreted with their memory spaces and races, against the recurrence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec
from oracles.lightning_recurrence import check_kernel, draw, recurrence, relative_error

from pallas_kernels.lightning_attention import mosaic_tpu, mosaic_tpu_tiling
from pallas_kernels.lightning_attention.mosaic_tpu_tiling import tiling


@pytest.fixture(autouse=True)
def interpreted():
    parameters = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    with pltpu.force_tpu_interpret_mode(parameters):
        yield
    assert interpret_pallas_call.races is None or not interpret_pallas_call.races.races_found


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


attention = jax.jit(mosaic_tpu.lightning_attention, compiler_options=QUICK)


@functools.partial(jax.jit, compiler_options=QUICK)
def with_gradients(q, k, v, slopes, state, segment_ids, dout, dstate):
    def function(q, k, v, state):
        return mosaic_tpu.lightning_attention(q, k, v, slopes, state, segment_ids)

    results, pullback = jax.vjp(function, q, k, v, state)
    return results, pullback((dout, dstate))


check = functools.partial(check_kernel, with_gradients)


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [(64, "float32"), (96, "float32"), (128, "float32"), (64, "bfloat16"), (128, "bfloat16")],
)
def test_head_dims_and_dtypes_with_a_ragged_last_chunk(dim, dtype):
    """T = 300 is two chunks and a part; three heads do not fill the lane groups of D = 64."""
    check((1, 300, 3, dim), dtype)


@pytest.mark.parametrize("length", [1, 50, 128, 129])
def test_lengths_around_a_chunk(length):
    """One token (the decoding kernel), less than a chunk, exactly one, and one token more."""
    check((2, length, 2, 64), seed=length)


def test_segments_and_padding_restart_and_hold_the_state():
    """Padding before, between and after tokens; changes of segment at and away from chunk ends."""
    ids = np.zeros((3, 300), np.int32)
    ids[0, 5:100], ids[0, 100:128], ids[0, 128:290] = 3, 1, 2
    ids[1] = np.repeat([1, 0, 1, 2], [128, 128, 10, 34])
    check((3, 300, 2, 64), segment_ids=ids)


def test_a_row_of_padding_passes_the_state_through():
    check((2, 20, 1, 64), segment_ids=np.zeros((2, 20), np.int32))


def test_padding_may_hold_any_value():
    """NaN in padded tokens reaches no output."""
    (q, k, v, _), (state, _) = draw(0, (1, 20, 1, 64), "float32")
    ids = np.repeat([[1, 0]], [15, 5], axis=1).astype(np.int32)
    slopes = jnp.ones(1)
    clean = attention(q, k, v, slopes, state, ids)
    q, k, v = (x.at[:, 15:].set(jnp.nan) for x in (q, k, v))
    dirty = attention(q, k, v, slopes, state, ids)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_decoding_continues_a_prefill_with_padding_in_the_batch():
    """One token a row after a prefill is the last token of the whole; a padded row stands still."""
    (q, k, v, _), (state, _) = draw(0, (2, 21, 8, 128), "float32")
    slopes = jnp.asarray(2.0 ** np.linspace(-1, -8, 8), jnp.float32)
    whole, _ = attention(q, k, v, slopes, state, None)
    _, middle = attention(*(x[:, :20] for x in (q, k, v)), slopes, state, None)
    ids = np.int32([[1], [0]])
    out, final = attention(*(x[:, 20:] for x in (q, k, v)), slopes, middle, ids)
    np.testing.assert_allclose(out[0], whole[0, 20:], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out[1], 0)
    np.testing.assert_array_equal(final[1], middle[1])


@pytest.mark.parametrize("slope", [0.0, 1e-8, 1.0, 100.0])
def test_extreme_decays(slope):
    """From none, over the near-zero slope of M1's last layer, to a memory of one token."""
    check((1, 300, 1, 128), slopes=[slope])


@pytest.mark.minutes
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape_slopes_and_segments(data):
    batch, heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 4))
    length, dim = data.draw(st.integers(1, 280)), data.draw(st.sampled_from([32, 64, 96, 128]))
    slopes = data.draw(st.lists(st.floats(1e-8, 2), min_size=heads, max_size=heads))
    ids = None
    if data.draw(st.booleans()):
        cuts = st.lists(st.integers(0, length), max_size=4)
        ids = np.ones((batch, length), np.int32)
        for row in ids:
            for cut in data.draw(cuts):
                row[cut:] = data.draw(st.integers(0, 3))
    seed = data.draw(st.integers(0, 100))
    check((batch, length, heads, dim), slopes=slopes, segment_ids=ids, seed=seed)


@pytest.mark.minutes
def test_a_long_row_stays_finite_and_exact():
    """T = 65,536 at a slope of 1 and at the near-zero slope of M1's last layer."""
    (q, k, v, _), (state, _) = draw(0, (1, 65536, 2, 64), "float32")
    slopes = np.float32([1.0, 1e-5 / 256])
    ids = np.ones((1, 65536), np.int32)
    out, final, _ = recurrence(q, k, v, slopes, state, ids)
    actual, actual_final = attention(q, k, v, slopes, state, None)
    for head in range(2):
        assert relative_error(actual[:, :, head], out[:, :, head]) <= 1e-5
        assert relative_error(actual_final[:, head], final[:, head]) <= 1e-5


def test_chunks_of_a_larger_matrix_unit(monkeypatch):
    """v6e's chunks of 256 tokens, three of them, the last one ragged."""
    monkeypatch.setattr(mosaic_tpu_tiling, "_matrix_unit", lambda: 256)
    ids = np.repeat([[2, 1, 3]], [300, 60, 160], axis=1).astype(np.int32)
    assert tiling((1, 520, 1, 128), jnp.dtype("float32")).chunk == 256
    check((1, 520, 1, 128), segment_ids=ids)


def test_traces_inside_shard_map():
    """With heads sharded over a mesh axis, results and gradients vary over it as inputs do."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(None, None, "model")
    states, shape = PartitionSpec(None, "model"), jax.ShapeDtypeStruct
    tokens, state = shape((1, 40, 4, 64), jnp.float32), shape((1, 4, 64, 64), jnp.float32)
    slopes, ids = shape((4,), jnp.float32), shape((1, 40), jnp.int32)
    function = jax.shard_map(
        with_gradients.__wrapped__,
        mesh=mesh,
        in_specs=(spec, spec, spec, PartitionSpec("model"), states, PartitionSpec(), spec, states),
        out_specs=((spec, states), (spec, spec, spec, states)),
    )
    results = jax.eval_shape(function, *[tokens] * 3, slopes, state, ids, tokens, state)
    assert results == ((tokens, state), (tokens, tokens, tokens, state))


def test_grid_steps_divide_among_two_cores():
    """At least two steps in the parallel dimensions, whole lane groups, chunks that fit T."""
    tiles = tiling((1, 4096, 64, 128), jnp.dtype("bfloat16"))
    assert (tiles.groups // tiles.step_groups, tiles.length, tiles.block(4)) == (8, 4096, 512)
    tiles = tiling((1, 100, 8, 128), jnp.dtype("float32"))
    assert tiles.groups // tiles.step_groups == 2
    assert tiles.chunk == tiles.block(4) == tiles.length == 112


def test_unsupported_arguments_name_the_remedy():
    shape, state = (1, 4, 1, 256), jnp.zeros((1, 1, 256, 256))
    with pytest.raises(ValueError, match="head dimensions up to 128.*use implementation='xla'"):
        mosaic_tpu.lightning_attention(*[jnp.zeros(shape)] * 3, jnp.ones(1), state, None)
    q = jnp.zeros((1, 4, 1, 64), jnp.float16)
    with pytest.raises(ValueError, match="bfloat16 or float32, got float16"):
        mosaic_tpu.lightning_attention(q, q, q, jnp.ones(1), jnp.zeros((1, 1, 64, 64)), None)
