"""Softmax attention inside loops, checkpoints and meshes, and the memory its programs take."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from oracles.softmax_attention import MODES, causal, draw_arrays, implementation_of, oracle

from pallas_kernels.softmax_attention import softmax_attention

every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("filled", [1, 250, 251, 1000])
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
    k[:, :, 256:] = v[:, :, 256:] = np.nan
    assert np.isfinite(jax.jit(softmax_attention)(q, k, v, **labels)[0]).all()


@every_mode
def test_one_layer_of_a_stacked_cache_is_read_and_gets_the_gradient(mode):
    q, k, v = draw_arrays(9, 4, 2, 3, 4, 2, 11, 4)
    labels = causal(4, 3, 2, 11)
    cotangents = np.random.default_rng(3).standard_normal((2, *q.shape)).astype(np.float32)
    cotangents = cotangents[0], cotangents[1, ..., 0]
    stacked_k, stacked_v = (np.full((3, *x.shape), np.nan, np.float32) for x in (k, v))
    stacked_k[1], stacked_v[1] = k, v
    expected_out, expected_lse, gradients = oracle(q, k, v, labels, 0.5, *cotangents)
    with implementation_of(mode) as implementation:

        def attend(q, k, v):
            return softmax_attention(
                q, k, v, layer=jnp.int32(1), **labels, implementation=implementation
            )

        (out, lse), pullback = jax.vjp(attend, q, stacked_k, stacked_v)
        dq, dk, dv = pullback(cotangents)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
    for stacked, expected in ((dk, gradients[1]), (dv, gradients[2])):
        np.testing.assert_allclose(stacked[1], expected, atol=1e-5)
        assert not stacked[::2].any()
    np.testing.assert_allclose(dq, gradients[0], atol=1e-5)


def test_a_layer_needs_a_stacked_cache():
    q, k, v = draw_arrays(9, 1, 1, 1, 1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"\[L, Bk, Hkv, S, D\]"):
        softmax_attention(q, k, v, layer=jnp.int32(0), **causal(1, 1, slots=4))


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
