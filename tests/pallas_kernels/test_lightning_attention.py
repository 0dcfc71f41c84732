"""Lightning attention against its recurrence, and its gradients against their own recurrence."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from oracles.lightning_recurrence import adjoint, recurrence, relative_error

from pallas_kernels import lightning_attention
from pallas_kernels.lightning_attention import api

IMPLEMENTATIONS = ["reference", "xla"]
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
NAMES = ("q", "k", "v", "initial_state")


def draw(seed, batch, length, heads, dim, slope_scale=1.0):
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, batch, length, heads, dim)).astype(np.float32)
    state = rng.standard_normal((batch, heads, dim, dim)).astype(np.float32)
    slopes = np.float32(slope_scale) * 2.0 ** np.linspace(-0.5, -8, heads, dtype=np.float32)
    return (q, k, v, slopes), state


@functools.partial(jax.jit, static_argnames="implementation")
def gradients(inputs, state, segment_ids, dout, dstate, implementation):
    q, k, v, slopes = inputs

    def function(q, k, v, state):
        keywords = {"segment_ids": segment_ids, "implementation": implementation}
        return lightning_attention(q, k, v, slopes, initial_state=state, **keywords)

    return jax.vjp(function, q, k, v, state)[1]((dout, dstate))


def check_against_oracle(inputs, state, segment_ids, implementation):
    segments = np.ones(inputs[0].shape[:2], int) if segment_ids is None else segment_ids
    out, final, steps = recurrence(*inputs, state, segments)
    actual, actual_final = lightning_attention(
        *inputs, initial_state=state, segment_ids=segment_ids, implementation=implementation
    )
    assert relative_error(actual, out) <= 1e-5
    assert relative_error(actual_final, final) <= 1e-5
    assert actual_final.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(actual)[np.asarray(segments) == 0], 0)
    rng = np.random.default_rng(1)
    dout = rng.standard_normal(out.shape).astype(np.float32)
    dstate = rng.standard_normal(final.shape).astype(np.float32)
    expected = adjoint(*inputs[:3], steps, dout, dstate)
    results = gradients(inputs, state, segment_ids, dout, dstate, implementation)
    for name, result, value in zip(NAMES, results, expected, strict=True):
        assert relative_error(result, value) <= 1e-4, name


def test_oracle_adjoint_is_the_derivative_of_the_oracle_recurrence():
    """Central differences of the float64 loop agree with its adjoint across padding and resets."""
    inputs, state = draw(0, 1, 6, 2, 3)
    inputs = [x.astype(np.float64) for x in inputs]
    segments, rng = np.array([[0, 1, 1, 0, 2, 2]]), np.random.default_rng(2)
    dout, dstate = rng.standard_normal(inputs[0].shape), rng.standard_normal(state.shape)
    arrays = [*inputs[:3], state.astype(np.float64)]
    steps = recurrence(*inputs, arrays[3], segments)[2]
    expected = adjoint(*inputs[:3], steps, dout, dstate)
    for index, gradient in enumerate(expected):
        direction = rng.standard_normal(arrays[index].shape)

        def value(step, index=index, direction=direction):
            moved = list(arrays)
            moved[index] = arrays[index] + step * direction
            out, final, _ = recurrence(*moved[:3], inputs[3], moved[3], segments)
            return (out * dout).sum() + (final * dstate).sum()

        difference = (value(1e-4) - value(-1e-4)) / 2e-4
        np.testing.assert_allclose(difference, (gradient * direction).sum(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 1023, 4097])
@pytest.mark.parametrize("slope_scale", [1.0, 1e-5])
def test_block_form_equals_recurrence_for_ragged_lengths(length, slope_scale):
    check_against_oracle(*draw(length, 1, length, 2, 16, slope_scale), None, "xla")


@pytest.mark.parametrize("length", [1, 2, 65])
def test_reference_equals_recurrence(length):
    check_against_oracle(*draw(length, 2, length, 2, 8), None, "reference")


@pytest.mark.parametrize("dim", [4, 64, 128])
def test_head_dims(dim):
    check_against_oracle(*draw(dim, 1, 40, 2, dim), None, "xla")


@both
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    layout=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=20),
    length=st.sampled_from([1, 16, 37]),
    slope_scale=st.sampled_from([1.4, 1.0, 0.3, 1e-5]),
)
def test_segments_and_padding_anywhere(implementation, seed, layout, length, slope_scale):
    """Any layout of packed rows and padding, any decay, equals the loop that skips and resets."""
    ids = [segment for segment, size in layout for _ in range(size)]
    segments = np.array((ids + [0] * 2 * length)[: 2 * length], np.int32).reshape(2, length)
    inputs, state = draw(seed, 2, length, 2, 4, slope_scale)
    check_against_oracle(inputs, state, segments, implementation)


@both
def test_a_row_of_padding_keeps_its_state_and_passes_its_gradient(implementation):
    inputs, state = draw(0, 2, 20, 2, 4)
    segments = np.zeros((2, 20), np.int32)
    out, final = lightning_attention(
        *inputs, initial_state=state, segment_ids=segments, implementation=implementation
    )
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(final, state)
    dq, dk, dv, dstate = gradients(inputs, state, segments, out, 2 * state, implementation)
    np.testing.assert_array_equal(np.stack([dq, dk, dv]), 0)
    np.testing.assert_array_equal(dstate, 2 * state)


@pytest.mark.parametrize("length", [1, 20])
def test_garbage_in_padding_stays_there(length):
    """NaN at padded positions reaches neither results nor gradients."""
    (q, k, v, slopes), state = draw(0, 2, length, 2, 4)
    segments = np.ones((2, length), np.int32)
    segments[0, -1] = 0
    q[0, -1], k[0, -1], v[0, -1] = np.nan, np.nan, np.inf
    inputs = (q, k, v, slopes)
    out, final = lightning_attention(*inputs, initial_state=state, segment_ids=segments)
    assert np.isfinite(out).all() and np.isfinite(final).all()
    for gradient in gradients(inputs, state, segments, np.ones_like(q), state, "xla"):
        assert np.isfinite(gradient).all()


def test_continuation_from_the_carried_state_equals_the_whole():
    """Cutting a sequence anywhere, down to single tokens, changes nothing."""
    inputs, state = draw(3, 2, 70, 2, 8)
    whole, final = lightning_attention(*inputs, initial_state=state)
    for cuts in ([35], [1], [69], [16, 17, 50], range(1, 70)):
        parts, carried = [], state
        for piece in zip(*(np.split(x, cuts, axis=1) for x in inputs[:3]), strict=True):
            out, carried = lightning_attention(*piece, inputs[3], initial_state=carried)
            parts.append(out)
        assert relative_error(np.concatenate(parts, 1), np.asarray(whole)) <= 2e-6
        assert relative_error(carried, np.asarray(final)) <= 2e-6


def test_packed_rows_equal_separate_rows():
    inputs, _ = draw(4, 1, 60, 2, 8)
    bounds = [0, 13, 45, 60]
    segments = np.repeat([[5, 2, 9]], np.diff(bounds), axis=1).astype(np.int32)
    out, final = lightning_attention(*inputs, segment_ids=segments)
    for start, stop in zip(bounds, bounds[1:], strict=False):
        alone, last = lightning_attention(*(x[:, start:stop] for x in inputs[:3]), inputs[3])
        assert relative_error(out[:, start:stop], alone) <= 2e-6
    assert relative_error(final, np.asarray(last)) <= 2e-6


def test_bfloat16_inputs_keep_a_float32_state():
    (q, k, v, slopes), state = draw(5, 2, 300, 4, 16)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    out, final = lightning_attention(q, k, v, slopes, initial_state=state)
    exact = [np.asarray(x, np.float64) for x in (q, k, v)]
    expected, state, _ = recurrence(*exact, slopes, state, np.ones((2, 300), int))
    assert out.dtype == jnp.bfloat16 and final.dtype == jnp.float32
    assert relative_error(out, expected) <= 1e-2
    assert relative_error(final, state) <= 1e-5


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        inputs, state = draw(6, 1, 50, 2, 8)
        inputs = [jnp.asarray(x, jnp.float64) for x in inputs]
        expected = recurrence(*inputs, state, np.ones((1, 50), int))
        actual = lightning_attention(*inputs, initial_state=state)
        for result, value in zip(actual, expected[:2], strict=True):
            assert relative_error(result, value) <= 1e-13


@pytest.mark.parametrize("slope", [1.0, 1e-5 * 2**-8])
def test_65536_tokens_stay_finite_and_right(slope):
    """The last token after 65,536 equals the closed sum over what its decay still lets it see."""
    rng = np.random.default_rng(7)
    q, k, v = rng.standard_normal((3, 1, 65536, 1, 4)).astype(np.float32)
    out, _ = lightning_attention(q, k, v, np.array([slope], np.float32))
    weights = np.exp(-np.float64(np.float32(slope)) * np.arange(65535, -1, -1))
    expected = (weights * (k[0, :, 0].astype(np.float64) @ q[0, -1, 0])) @ v[0, :, 0]
    assert np.isfinite(out).all()
    assert relative_error(out[0, -1, 0], expected) <= 1e-4


def test_slopes_have_no_gradient():
    inputs, state = draw(8, 1, 20, 2, 4)

    def total(slopes, implementation):
        out, _ = lightning_attention(
            *inputs[:3], slopes, initial_state=state, implementation=implementation
        )
        return out.sum()

    for implementation in IMPLEMENTATIONS:
        np.testing.assert_array_equal(jax.grad(total)(inputs[3], implementation), 0)


def test_transformations_agree_with_the_plain_call():
    """vmap, checkpoint and scan over traced slopes give what a Python loop gives."""
    inputs, _ = draw(9, 2, 30, 2, 4)
    q, k, v, slopes = (jnp.asarray(x) for x in inputs)
    factors = jnp.array([1.0, 0.5, 1e-5])

    def loss(q, factor):
        return (lightning_attention(q, k, v, slopes * factor)[0] ** 2).sum()

    expected = [jax.grad(loss)(q, factor) for factor in factors]
    checkpointed = jax.grad(jax.checkpoint(loss))
    _, scanned = jax.lax.scan(lambda _, factor: (None, checkpointed(q, factor)), None, factors)
    mapped = jax.vmap(jax.grad(loss), (None, 0))(q, factors)
    for index, value in enumerate(expected):
        assert relative_error(scanned[index], np.asarray(value)) <= 1e-6
        assert relative_error(mapped[index], np.asarray(value)) <= 1e-6


def temporary_bytes(length, segmented):
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    state = jax.ShapeDtypeStruct((1, 2, 16, 16), jnp.float32)
    slopes = jax.ShapeDtypeStruct((2,), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32) if segmented else None

    def both_passes(q, k, v, slopes, state, segments):
        def forward(q, k, v, state):
            return lightning_attention(
                q, k, v, slopes, initial_state=state, segment_ids=segments, implementation="xla"
            )

        results, pullback = jax.vjp(forward, q, k, v, state)
        return pullback(results)

    compiled = jax.jit(both_passes).lower(shape, shape, shape, slopes, state, segments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("segmented", [False, True])
def test_memory_of_forward_and_backward_is_linear_and_small(segmented):
    short, long = temporary_bytes(4096, segmented), temporary_bytes(16384, segmented)
    assert long <= 4.5 * short
    assert long <= 3 * (4 * 16384 * 2 * 16)  # three arrays the size of q


def test_a_decode_loop_updates_the_state_in_place():
    """The compiled loop has no temporary of the size of the state."""
    state = jax.ShapeDtypeStruct((8, 4, 32, 32), jnp.float32)
    token = jax.ShapeDtypeStruct((8, 1, 4, 32), jnp.float32)
    slopes = jax.ShapeDtypeStruct((4,), jnp.float32)

    def decode(x, slopes, state):
        def step(carry):
            index, x, state = carry
            x, state = lightning_attention(x, x, x, slopes, initial_state=state)
            return index + 1, x, state

        return jax.lax.while_loop(lambda carry: carry[0] < 10, step, (0, x, state))

    compiled = jax.jit(decode, donate_argnums=2).lower(token, slopes, state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 8 * 4 * 32 * 32 / 2


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_over_batch_and_heads(axis_type):
    """Partitioned by the compiler, it gives the same gradients without moving an array."""
    types = (jax.sharding.AxisType[axis_type],) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=types)
    inputs, state = draw(10, 2, 40, 2, 4)
    segments = np.repeat([[1, 2, 0, 2]], 10, axis=1).repeat(2, 0).astype(np.int32)
    wide = NamedSharding(mesh, PartitionSpec("data", None, "model"))
    q, k, v = (jax.device_put(x, wide) for x in inputs[:3])
    slopes = jax.device_put(inputs[3], NamedSharding(mesh, PartitionSpec("model")))
    ids = jax.device_put(segments, NamedSharding(mesh, PartitionSpec("data")))

    def loss(q, k, v):
        out, final = lightning_attention(q, k, v, slopes, segment_ids=ids)
        return (out**2).sum() + (final**2).sum()

    def plain(q, k, v):
        out, final = lightning_attention(q, k, v, inputs[3], segment_ids=segments)
        return (out**2).sum() + (final**2).sum()

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
        actual = compiled(q, k, v)
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    for result, value in zip(actual, jax.grad(plain, (0, 1, 2))(*inputs[:3]), strict=True):
        assert result.sharding.is_equivalent_to(wide, 4)
        assert relative_error(result, np.asarray(value)) <= 1e-6


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("with_state", [False, True])
@both
def test_shard_map_over_batch_and_heads(with_state, implementation):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    inputs, state = draw(11, 2, 40, 2, 4)
    token, square = PartitionSpec("data", None, "model"), PartitionSpec("data", "model")
    states = (state,) if with_state else ()

    def run(q, k, v, slopes, *states):
        initial = states[0] if states else None
        return lightning_attention(
            q, k, v, slopes, initial_state=initial, implementation=implementation
        )

    specs = (token, token, token, PartitionSpec("model"), *((square,) if with_state else ()))
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(token, square))

    def loss(function, *arguments):
        out, final = function(*arguments)
        return (out**2).sum() + (final**2).sum()

    actual = jax.jit(jax.grad(loss, 1 if not with_state else 5), static_argnums=0)
    expected = jax.grad(loss, 1 if not with_state else 5)(run, *inputs, *states)
    assert relative_error(actual(mapped, *inputs, *states), np.asarray(expected)) <= 1e-6


def test_a_user_is_told_what_is_wrong():
    (q, k, v, slopes), state = draw(12, 1, 4, 2, 4)
    for implementation, message in (
        ("triton", "'triton' needs a gpu, and this is a cpu"),
        ("mosaic_tpu", "'mosaic_tpu' needs a tpu, and this is a cpu"),
        ("pytorch", "no implementation 'pytorch'; choose one of.*'xla'"),
    ):
        with pytest.raises(ValueError, match=message):
            lightning_attention(q, k, v, slopes, implementation=implementation)
    with pytest.raises(ValueError, match="v must have shape"):
        lightning_attention(q, k, v[:, :3], slopes)
    with pytest.raises(ValueError, match="slopes must have shape"):
        lightning_attention(q, k, v, slopes[:1])
    with pytest.raises(ValueError, match="initial_state must have shape"):
        lightning_attention(q, k, v, slopes, initial_state=state[0])
    with pytest.raises(ValueError, match="segment_ids must have shape"):
        lightning_attention(q, k, v, slopes, segment_ids=np.ones(4, np.int32))
    with pytest.raises(ValueError, match="segment_ids must be integers"):
        lightning_attention(q, k, v, slopes, segment_ids=np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="share a dtype"):
        lightning_attention(q, k, v.astype(jnp.bfloat16), slopes)
    with pytest.raises(ValueError, match="T >= 1"):
        lightning_attention(q[:, :0], k[:, :0], v[:, :0], slopes)


@pytest.mark.parametrize(
    ("platform", "dtype", "dim", "expected", "reason"),
    [
        ("gpu", "bfloat16", 128, "triton", None),
        ("gpu", "float32", 96, "triton", None),
        ("gpu", "float32", 256, "xla", "triton takes a head_dim of at most 128, not 256"),
        ("tpu", "bfloat16", 128, "mosaic_tpu", None),
        ("tpu", "float16", 64, "xla", "mosaic_tpu takes bfloat16 or float32, got float16"),
        ("cpu", "float32", 64, "xla", None),
    ],
)
def test_none_picks_by_platform_and_shape_and_says_why_it_falls_back(
    monkeypatch, platform, dtype, dim, expected, reason
):
    messages = []
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(
        api.logging, "log_first_n", lambda _, text, __, *words: messages.append(text % words)
    )
    assert api._choose(jax.ShapeDtypeStruct((1, 8, 2, dim), dtype)) == expected
    assert messages == ([f"lightning_attention: {reason}; using xla"] if reason else [])


def test_the_package_exports_the_function_and_keeps_its_modules():
    """The function shadows its folder as an attribute; the modules stay importable."""
    module = importlib.import_module("pallas_kernels.lightning_attention.xla")
    assert callable(lightning_attention) and callable(module.lightning_attention)
