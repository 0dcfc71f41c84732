"""Lightning attention sharded over time, on eight devices, against the recurrence on none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec
from oracles.lightning_recurrence import adjoint, recurrence

from pallas_kernels.lightning_attention.sequence_parallel import (
    sequence_parallel_lightning_attention,
)

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
LENGTH, SHAPE = 40, (2, 40, 2, 4)  # five tokens a device: segments span and fill devices


def mesh(*sizes, names=("sequence",)):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))


@functools.partial(jax.jit, static_argnames=("devices", "heads_axis", "implementation"))
def with_gradients(
    q, k, v, slopes, state, segment_ids, dout, dstate, *, devices=8, heads_axis=1, implementation
):
    """Results and gradients of the function over `devices` shares of time and some of heads."""
    axes = mesh(devices, heads_axis, names=("sequence", "tensor"))
    tokens = PartitionSpec(None, "sequence", "tensor")
    whole, heads = PartitionSpec(None, "tensor"), PartitionSpec("tensor")

    def local(q, k, v, slopes, state, segment_ids):
        return sequence_parallel_lightning_attention(
            q,
            k,
            v,
            slopes,
            axis_name="sequence",
            initial_state=state,
            segment_ids=segment_ids,
            implementation=implementation,
        )

    ids = None if segment_ids is None else PartitionSpec(None, "sequence")
    specs = (tokens, tokens, tokens, heads, None if state is None else whole, ids)
    function = jax.shard_map(local, mesh=axes, in_specs=specs, out_specs=(tokens, whole))
    inputs = (q, k, v) if state is None else (q, k, v, state)

    def of_inputs(q, k, v, state=None):
        return function(q, k, v, slopes, state, segment_ids)

    results, pullback = jax.vjp(of_inputs, *inputs)
    return results, pullback((dout, dstate))


def draw(seed, shape=SHAPE, slope_scale=1.0):
    rng = np.random.default_rng(seed)
    q, k, v, dout = rng.standard_normal((4, *shape)).astype(np.float32)
    batch, _, heads, dim = shape
    state, dstate = rng.standard_normal((2, batch, heads, dim, dim)).astype(np.float32)
    slopes = (slope_scale * 2.0 ** np.linspace(-0.5, -8, heads)).astype(np.float32)
    return (q, k, v, slopes), state, dout, dstate


def check(inputs, state, segment_ids, dout, dstate, implementation="xla", **layout):
    """Everything the sharded function returns is what the float64 loop over the rows returns."""
    q, k, v, slopes = inputs
    segments = np.ones(q.shape[:2], int) if segment_ids is None else segment_ids
    start = np.zeros_like(dstate) if state is None else state
    out, final, steps = recurrence(q, k, v, slopes, start, segments)
    padding = (segments == 0)[..., None, None]
    expected = adjoint(q, k, v, steps, np.where(padding, 0, dout), dstate)
    results, gradients = with_gradients(
        *inputs, state, segment_ids, dout, dstate, implementation=implementation, **layout
    )
    for result, value in zip(results, (out, final), strict=True):
        assert np.linalg.norm(result - value) <= 1e-5 * max(np.linalg.norm(value), 1e-6)
    for result, value in zip(gradients, expected, strict=state is not None):
        assert np.isfinite(result).all()
        assert np.linalg.norm(result - value) <= 1e-4 * max(np.linalg.norm(value), 1e-6)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_one_sequence_over_eight_devices(with_state, implementation):
    inputs, state, dout, dstate = draw(0)
    check(inputs, state if with_state else None, None, dout, dstate, implementation)


@pytest.mark.parametrize("slope_scale", [1.4, 1e-5])
def test_time_and_heads_sharded_together(slope_scale):
    inputs, state, dout, dstate = draw(1, slope_scale=slope_scale)
    check(inputs, state, None, dout, dstate, devices=4, heads_axis=2)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    layout=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 14)), min_size=1, max_size=16),
    slope_scale=st.sampled_from([1.0, 1e-5]),
)
def test_no_state_passes_a_change_of_segment(seed, layout, slope_scale):
    """Any layout: segments that end with a device, span some, or leave others with padding only."""
    ids = [segment for segment, size in layout for _ in range(size)]
    segments = np.array((ids + [0] * 2 * LENGTH)[: 2 * LENGTH], np.int32).reshape(2, LENGTH)
    inputs, state, dout, dstate = draw(seed, slope_scale=slope_scale)
    check(inputs, state, segments, dout, dstate)


@pytest.mark.parametrize(
    "ids",
    [
        [1] * 20 + [2] * 20,  # the change falls between two devices
        [0] * 13 + [3] * 4 + [0] * 16 + [3] * 7,  # one segment across devices of padding
        [0] * 13 + [3] * 4 + [0] * 16 + [4] * 7,  # a change across devices of padding
        [0] * 40,
    ],
)
def test_segments_and_padding_at_the_edges_of_devices(ids):
    inputs, state, dout, dstate = draw(2)
    check(inputs, state, np.array([ids, ids[::-1]], np.int32), dout, dstate)


def test_garbage_in_padding_reaches_no_other_device():
    inputs, state, dout, dstate = draw(3)
    segments = np.ones(SHAPE[:2], np.int32)
    segments[:, 3] = segments[:, 17:24] = 0
    for array in inputs[:3]:
        array[segments == 0] = np.nan
    results, gradients = with_gradients(
        *inputs, state, segments, dout, dstate, implementation="xla"
    )
    for array in (*results, *gradients):
        assert np.isfinite(array).all()


def test_only_states_travel():
    """What the devices exchange does not grow with the tokens they hold."""

    def exchanged(length):
        inputs, state, dout, dstate = draw(4, (1, length, 2, 4))
        arguments = (*inputs, state, np.ones((1, length), np.int32), dout, dstate)
        lowered = with_gradients.lower(*arguments, implementation="xla")
        text = lowered.compile().as_text().splitlines()
        names = ("all-gather(", "all-reduce(", "reduce-scatter(", "all-to-all(", "permute(")
        return sorted(
            line.split(" = ")[1].split("(")[0] for line in text if any(x in line for x in names)
        )

    short, long = exchanged(40), exchanged(4000)
    assert short == long and short
    assert not any("500" in line for line in long)  # tokens a device


def test_bfloat16_keeps_a_float32_state():
    (q, k, v, slopes), state, dout, dstate = draw(5, (1, 400, 2, 8))
    q, k, v, dout = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, dout))
    results, gradients = with_gradients(
        q, k, v, slopes, state, None, dout, dstate, implementation="xla"
    )
    exact = [np.asarray(x, np.float64) for x in (q, k, v, dout)]
    out, final, steps = recurrence(*exact[:3], slopes, state, np.ones((1, 400)))
    expected = adjoint(*exact[:3], steps, exact[3], dstate)
    for result, value, bound in zip(results, (out, final), (1e-2, 1e-5), strict=True):
        assert np.linalg.norm(np.asarray(result, np.float64) - value) <= bound * np.linalg.norm(
            value
        )
    for result, value in zip(gradients, expected, strict=True):
        error = np.linalg.norm(np.asarray(result, np.float64) - value)
        assert error <= 2e-2 * np.linalg.norm(value)
    assert gradients[0].dtype == jnp.bfloat16 and results[1].dtype == jnp.float32
