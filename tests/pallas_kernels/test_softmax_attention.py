"""Softmax attention against a float64 loop over queries, and its gradients likewise."""

import contextlib
import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels.softmax_attention import merge_attention, softmax_attention, xla

MODES = ["reference", "xla", "xla in small blocks"]
every_mode = pytest.mark.parametrize("mode", MODES)


@contextlib.contextmanager
def implementation_of(mode, block_scores=96, block_slots=5, block_rows=3):
    """The implementation's name, with blocks small enough for many of them in a small test."""
    if mode != "xla in small blocks":
        yield mode
        return
    sizes = {
        "FEW_ROWS": 0,
        "DENSE_SCORES": 0,
        "BLOCK_SCORES": block_scores,
        "BLOCK_SLOTS": block_slots,
        "MIN_BLOCK_ROWS": block_rows,
    }
    with mock.patch.multiple(xla, **sizes):
        yield "xla"


def oracle(q, k, v, labels, scale, out_bar=None, lse_bar=None):
    """out, lse and, given cotangents, (dq, dk, dv): one query at a time in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, lse = np.zeros_like(q), np.full(q.shape[:3], -np.inf)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    per_kv_row, per_kv_head = q.shape[0] // k.shape[0], q.shape[2] // k.shape[1]
    for b, t, h in np.ndindex(*q.shape[:3]):
        row, head = b // per_kv_row, h // per_kv_head
        positions = labels["kv_positions"][row]
        seen = (positions >= 0) & (positions <= labels["q_positions"][b, t])
        if labels.get("q_segment_ids") is not None:
            seen &= labels["kv_segment_ids"][row] == labels["q_segment_ids"][b, t]
        if not seen.any():
            continue
        keys, values = k[row, head, seen], v[row, head, seen]
        scores = scale * keys @ q[b, t, h]
        lse[b, t, h] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
        p = np.exp(scores - lse[b, t, h])
        out[b, t, h] = p @ values
        if out_bar is not None:
            value_bar = values @ out_bar[b, t, h]
            scores_bar = p * (value_bar - p @ value_bar + lse_bar[b, t, h])
            dq[b, t, h] = scale * scores_bar @ keys
            dk[row, head, seen] += scale * scores_bar[:, None] * q[b, t, h]
            dv[row, head, seen] += p[:, None] * out_bar[b, t, h]
    return out, lse, (dq, dk, dv)


def draw_arrays(seed, batch, kv_batch, time, heads, kv_heads, slots, depth):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((batch, time, heads, depth)).astype(np.float32)
    k, v = rng.standard_normal((2, kv_batch, kv_heads, slots, depth)).astype(np.float32)
    return q, k, v


def causal(batch, time, kv_batch=None, slots=None):
    """Positions of a sequence that attends to itself, or of its last `time` tokens of `slots`."""
    kv_batch, slots = kv_batch or batch, slots or time
    return {
        "q_positions": np.tile(np.arange(slots - time, slots, dtype=np.int32), (batch, 1)),
        "kv_positions": np.tile(np.arange(slots, dtype=np.int32), (kv_batch, 1)),
    }


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
    poisoned = np.isin(np.arange(40), [*range(15, 40)])  # the last block of segment 2, the tail
    k, v = (np.where(poisoned[:, None], np.nan, x).astype(np.float32) for x in (k, v))
    clean = 15  # queries before position 15, in blocks of 5 positions of 2 heads

    def loss(q, k, v):
        out, _ = softmax_attention(q, k, v, **labels, implementation=implementation)
        return out[:, :clean].sum(), out

    with implementation_of(MODES[2], 50, 5, 10) as implementation:
        _, out = jax.jit(loss)(q, k, v)
        assert np.isfinite(out[:, :clean]).all() and np.isnan(out[:, clean:]).all()
        labels["q_positions"] = np.where(labels["q_positions"] < clean, labels["q_positions"], -1)
        gradients, _ = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.any(gradients[1][:, :, :clean]) and not np.any(gradients[1][:, :, clean:])


@pytest.mark.parametrize("filled", [1, 130, 200, 600, 1000])
def test_decoding_reads_a_prefix_that_holds_every_filled_slot(filled):
    q, k, v = draw_arrays(4, 2, 2, 1, 4, 2, 1000, 4)
    labels = causal(2, 1, slots=1000) | {"q_positions": np.full((2, 1), filled - 1, np.int32)}
    out, lse = jax.jit(softmax_attention)(q, k, v, **labels)
    expected_out, expected_lse, _ = oracle(q, k, v, labels, 0.5)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)


def test_decoding_an_almost_empty_cache_does_not_read_its_tail():
    q, k, v = draw_arrays(5, 2, 2, 1, 4, 2, 2048, 4)
    labels = causal(2, 1, slots=2048) | {"q_positions": np.full((2, 1), 99, np.int32)}
    k[:, :, 128:] = v[:, :, 128:] = np.nan
    assert np.isfinite(jax.jit(softmax_attention)(q, k, v, **labels)[0]).all()


def test_a_while_loop_that_decodes_into_a_cache_equals_one_causal_pass():
    batch, steps, slots = 2, 7, 300
    q, k, v = draw_arrays(6, batch, batch, steps, 4, 2, steps, 4)
    expected, _, _ = oracle(q, k, v, causal(batch, steps), 0.5)

    def decode(state):
        t, keys, values, positions, out = state
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(cache, new[:, :, t][:, :, None], t, 2)
            for cache, new in ((keys, jnp.asarray(k)), (values, jnp.asarray(v)))
        )
        positions = positions.at[:, t].set(t)
        new, _ = softmax_attention(
            jnp.asarray(q)[:, t][:, None],
            keys,
            values,
            q_positions=jnp.full((batch, 1), t),
            kv_positions=positions,
        )
        return t + 1, keys, values, positions, out.at[:, t].set(new[:, 0])

    cache = jnp.zeros((batch, 2, slots, 4))
    state = 0, cache, cache, jnp.full((batch, slots), -1), jnp.zeros(q.shape)
    out = jax.jit(lambda state: jax.lax.while_loop(lambda s: s[0] < steps, decode, state))(state)[4]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@every_mode
def test_gradients_pass_through_scan_and_checkpoint(mode):
    """Two rematerialised layers in a scan, each attending with the last one's output as queries."""
    q, k, v = draw_arrays(7, 2, 2, 8, 2, 2, 8, 4)
    labels = causal(2, 8)
    middle, _, _ = oracle(q, k, v, labels, 0.5)
    ones, zeros = np.ones(q.shape), np.zeros(q.shape[:3])
    expected, _, (middle_bar, _, _) = oracle(middle, k, v, labels, 0.5, ones, zeros)
    _, _, (q_bar, _, _) = oracle(q, k, v, labels, 0.5, middle_bar, zeros)

    @jax.checkpoint
    def layer(x, _):
        return softmax_attention(x, k, v, **labels, implementation=implementation)[0], None

    def loss(q):
        out, _ = jax.lax.scan(layer, q, None, length=2)
        return out.sum(), out

    with implementation_of(mode) as implementation:
        gradient, out = jax.jit(jax.grad(loss, has_aux=True))(q)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, q_bar, atol=1e-5)


@every_mode
def test_shards_of_batch_and_heads_equal_the_whole(mode):
    """Inside shard_map, with gradients."""
    q, k, v = draw_arrays(8, 4, 2, 6, 4, 2, 6, 4)
    labels = causal(4, 6, 2, 6)
    out_bar, lse_bar = np.ones(q.shape), np.ones(q.shape[:3])
    expected, _, expected_gradients = oracle(q, k, v, labels, 0.5, out_bar, lse_bar)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    queries, cache = PartitionSpec("data", None, "model"), PartitionSpec("data", "model")

    def attend(q, k, v, q_positions, kv_positions):
        return softmax_attention(
            q,
            k,
            v,
            q_positions=q_positions,
            kv_positions=kv_positions,
            implementation=implementation,
        )

    def loss(q, k, v):
        rows = PartitionSpec("data")
        sharded = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(queries, cache, cache, rows, rows),
            out_specs=(queries, queries),
        )
        out, lse = sharded(q, k, v, labels["q_positions"], labels["kv_positions"])
        return out.sum() + lse.sum(), out

    with implementation_of(mode) as implementation:
        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for name, actual, wanted in zip("qkv", gradients, expected_gradients):
        np.testing.assert_allclose(actual, wanted, atol=2e-5, err_msg=f"d{name}")


@every_mode
def test_bfloat16_inputs_lose_no_more_than_their_rounding(mode):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw_arrays(9, 2, 2, 12, 4, 2, 12, 8)]
    labels = causal(2, 12)
    expected_out, expected_lse, _ = oracle(*arrays, labels, 8**-0.5)
    with implementation_of(mode) as implementation:
        attend = functools.partial(softmax_attention, implementation=implementation)
        out, lse = jax.jit(attend)(*arrays, **labels)
    assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
    np.testing.assert_allclose(out.astype(np.float32), expected_out, atol=0.03)


def test_memory_grows_linearly_with_length():
    """Temporary bytes of value and gradient: far under one [T, S] array of scores."""

    def temporary_bytes(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        cache = jax.ShapeDtypeStruct((1, 1, length, 8), jnp.float32)

        def loss(q, k, v):
            return softmax_attention(q, k, v, **causal(1, length))[0].sum()

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(shape, cache, cache).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(8192), temporary_bytes(32768)
    assert long < 4.5 * short
    assert long < 32768**2 * 4 / 50


def test_decoding_makes_no_copy_of_the_cache():
    cache = jax.ShapeDtypeStruct((4, 2, 2048, 32), jnp.float32)
    q = jax.ShapeDtypeStruct((4, 1, 4, 32), jnp.float32)
    labels = causal(4, 1, slots=2048)
    compiled = jax.jit(lambda q, k, v: softmax_attention(q, k, v, **labels)).lower(q, cache, cache)
    text = compiled.compile().as_text()
    size = 4 * 2 * 2048 * 32
    made = {
        operation
        for dimensions, operation in re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", text)
        if np.prod([int(n) for n in dimensions.split(",")]) >= size
    }
    assert "parameter" in made
    assert made <= {"parameter", "get-tuple-element", "bitcast"}, made


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
