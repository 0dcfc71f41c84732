"""The fused head against its formula in float64, and against hand-derived gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.fused_head import token_logprobs, xla
from pallas_kernels.fused_head.api import IMPLEMENTATIONS


def oracle(hidden, head, tokens, support, temperature, cotangents=None):
    """Row by row in float64: logprobs, entropy, and the gradients for the cotangents."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logprobs, entropies = np.zeros(len(hidden)), np.zeros(len(hidden))
    dhidden, dhead = np.zeros_like(hidden), np.zeros_like(head)
    for row, token in enumerate(tokens):
        z = head @ hidden[row] / temperature
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
        entropies[row] = -(p * logp).sum()
        ids = np.arange(len(head)) if support is None else support[row][support[row] >= 0]
        ids = ids if len(ids) else np.arange(len(head))
        lse = z[ids].max() + np.log(np.exp(z[ids] - z[ids].max()).sum())
        logprobs[row] = z[token] - lse
        if cotangents is not None:
            dz = -cotangents[1][row] * p * (logp + entropies[row])
            dz[token] += cotangents[0][row]
            dz[ids] -= cotangents[0][row] * np.exp(z[ids] - lse)
            dhidden[row] = head.T @ dz / temperature
            dhead += np.outer(dz, hidden[row]) / temperature
    return logprobs, entropies, dhidden, dhead


def draw(seed, rows, width, vocab, kept=None, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden = (scale * rng.standard_normal((rows, width))).astype(np.float32)
    head = rng.standard_normal((vocab, width)).astype(np.float32)
    tokens = rng.integers(0, vocab, rows).astype(np.int32)
    cotangents = rng.standard_normal((2, rows)).astype(np.float32)
    if kept is None:
        return hidden, head, tokens, None, cotangents
    others = [rng.permutation(np.delete(np.arange(vocab), x))[: kept - 1] for x in tokens]
    support = np.column_stack([tokens, np.array(others)]).astype(np.int32)
    support[:, 1:][rng.random((rows, kept - 1)) < 0.4] = -1
    support[0] = -1
    return hidden, head, tokens, support, cotangents


def relative_error(actual, expected):
    assert np.isfinite(actual).all()
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / max(
        np.linalg.norm(expected), 1e-12
    )


@functools.partial(jax.jit, static_argnames=("implementation", "pieces"))
def run(hidden, head, tokens, support, temperature, cotangents, *, implementation, pieces=None):
    """logprobs, entropy, dhidden and dhead; `pieces` is an option of "xla" alone."""
    options = {} if pieces is None else {"pieces": pieces}

    def function(hidden, head):
        implement = IMPLEMENTATIONS[implementation]
        return implement(hidden, head, tokens, support, temperature, **options)

    results, pullback = jax.vjp(function, hidden, head)
    return *results, *pullback(tuple(x.astype(results[0].dtype) for x in cotangents))


@pytest.mark.parametrize("kept", [None, 6])
@pytest.mark.parametrize(("vocab", "pieces"), [(12, 1), (12, 12), (31, 3), (60, 5)])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_any_number_of_pieces_equals_the_formula(vocab, pieces, kept, seed, temperature, scale):
    """Values and gradients, from flat to saturated softmax, with pieces that do not divide V."""
    *inputs, cotangents = draw(seed, 7, 8, vocab, kept, scale)
    arguments = (*inputs, temperature, cotangents)
    results = run(*arguments, implementation="xla", pieces=pieces)
    for result, value in zip(results, oracle(*arguments), strict=True):
        error = np.linalg.norm(np.asarray(result, np.float64) - value)
        assert np.isfinite(result).all()
        assert error <= 1e-5 * scale * (1 + np.linalg.norm(value)) / min(temperature, 1)


@pytest.mark.parametrize("kept", [None, 5])
def test_reference_equals_the_formula(kept):
    *inputs, cotangents = draw(1, 20, 16, 50, kept)
    results = run(*inputs, 0.8, cotangents, implementation="reference")
    for result, value in zip(results, oracle(*inputs, 0.8, cotangents), strict=True):
        assert relative_error(result, value) <= 1e-5


@pytest.mark.parametrize("implementation", [None, "reference", "xla"])
@pytest.mark.parametrize("kept", [None, 5])
def test_the_public_function_equals_the_formula(implementation, kept):
    hidden, head, tokens, support, _ = draw(1, 20, 16, 50, kept)
    results = token_logprobs(
        hidden, head, tokens, temperature=0.8, support=support, implementation=implementation
    )
    for result, value in zip(results, oracle(hidden, head, tokens, support, 0.8)[:2], strict=True):
        assert result.dtype == jnp.float32
        assert relative_error(result, value) <= 1e-5


def test_oracle_gradients_are_derivatives_of_the_oracle_values():
    hidden, head, tokens, support, cotangents = draw(2, 3, 4, 9, 4)
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    *_, dhidden, dhead = oracle(hidden, head, tokens, support, 0.7, cotangents)
    rng = np.random.default_rng(3)
    moves = rng.standard_normal(hidden.shape), rng.standard_normal(head.shape)

    def value(step):
        moved = hidden + step * moves[0], head + step * moves[1]
        logprobs, entropy, *_ = oracle(*moved, tokens, support, 0.7)
        return (cotangents[0] * logprobs + cotangents[1] * entropy).sum()

    difference = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(difference, (dhidden * moves[0]).sum() + (dhead * moves[1]).sum())


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        hidden, head, tokens, support, cotangents = draw(4, 6, 8, 33, 5)
        inputs = jnp.asarray(hidden, jnp.float64), jnp.asarray(head, jnp.float64), tokens, support
        for pieces in (1, 4):
            results = run(*inputs, 0.5, cotangents, implementation="xla", pieces=pieces)
            for result, value in zip(results, oracle(*inputs, 0.5, cotangents), strict=True):
                assert relative_error(result, value) <= 1e-13


def test_bfloat16_operands_are_widened_before_the_product():
    """The only error is that of rounding the gradients to bfloat16, even those of a long sum."""
    hidden, head, tokens, _, cotangents = draw(5, 2000, 16, 48)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    arguments = hidden, head, tokens, None, 1.0, cotangents
    results = run(*arguments, implementation="xla", pieces=3)
    for result, value, bound in zip(results, oracle(*arguments), (1e-6, 1e-6, 3e-3, 3e-3)):
        assert relative_error(result, value) <= bound
    assert results[2].dtype == results[3].dtype == jnp.bfloat16


def test_a_support_of_all_ids_is_no_support():
    hidden, head, tokens, _, _ = draw(6, 5, 8, 40)
    everything = np.broadcast_to(np.arange(40, dtype=np.int32), (5, 40))
    plain = token_logprobs(hidden, head, tokens)
    for support in (everything, np.full((5, 3), -1, np.int32)):
        for result, value in zip(
            token_logprobs(hidden, head, tokens, support=support), plain, strict=True
        ):
            np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5)


def test_a_traced_temperature_gives_the_same_values():
    hidden, head, tokens, _, _ = draw(7, 5, 8, 40)
    traced = jax.jit(lambda t: token_logprobs(hidden, head, tokens, temperature=t))(0.6)
    for result, value in zip(traced, oracle(hidden, head, tokens, None, 0.6)[:2], strict=True):
        assert relative_error(result, value) <= 1e-5


def compiled_bytes(rows, vocab, width=64):
    """Temporary bytes of value and gradients at a vocabulary cut into pieces."""
    shapes = [((rows, width), jnp.float32), ((vocab, width), jnp.float32), ((rows,), jnp.int32)]

    def total(hidden, head, tokens):
        logprobs, entropy = token_logprobs(hidden, head, tokens)
        return (logprobs + 0.1 * entropy).sum()

    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_hold_the_logits():
    """It grows with the tokens by one piece's logits a token, and with V only like the head."""
    small, more_tokens = compiled_bytes(2048, 32768), compiled_bytes(4096, 32768)
    assert more_tokens <= 2.1 * small
    assert small <= 4 * 2048 * 32768 / 2  # half of one array of logits
    assert compiled_bytes(2048, 131072) - small <= 3 * 4 * (131072 - 32768) * 64


@pytest.mark.parametrize("vocab", [32003, 50257, 151936, 200064])
def test_pieces_have_a_good_size_at_any_vocabulary(vocab):
    pieces = xla._number_of_pieces(vocab)
    assert 1024 <= vocab / pieces <= 8192


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("kept", [None, 5])
def test_sharded_over_tokens_and_vocabulary(kept):
    """Neither the head nor its gradient is gathered, and the results are those of one device."""
    *inputs, cotangents = draw(8, 32, 24, 192, kept)
    types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=types)
    by_token, by_vocab = (NamedSharding(mesh, PartitionSpec(x)) for x in ("data", "tensor"))
    rows = NamedSharding(mesh, PartitionSpec(None, "data"))
    places = [by_token, by_vocab, by_token, None if kept is None else by_token]

    def both(hidden, head, tokens, support, cotangents):
        arguments = hidden, head, tokens, support, 0.7, cotangents
        return run(*arguments, implementation="xla", pieces=3)

    results = (by_token, by_token, by_token, by_vocab)
    function = jax.jit(both, in_shardings=(*places, rows), out_shardings=results)
    text = function.lower(*inputs, cotangents).compile().as_text()
    gathers = [x.split("all-gather(")[0] for x in text.splitlines() if "all-gather(" in x]
    assert not [x for x in gathers if "24]" in x], gathers  # M is 24: head, hidden or a gradient
    expected = oracle(*inputs, 0.7, cotangents)
    for result, value in zip(function(*inputs, cotangents), expected, strict=True):
        assert relative_error(result, value) <= 1e-5


def test_a_user_is_told_what_is_wrong():
    hidden, head, tokens, support, _ = draw(9, 4, 8, 10, 3)
    with pytest.raises(ValueError, match="'xlaa' is not available.*did you mean 'xla'"):
        token_logprobs(hidden, head, tokens, implementation="xlaa")
    with pytest.raises(ValueError, match=r"hidden must be \[N, M\]"):
        token_logprobs(hidden, head[:, :3], tokens)
    with pytest.raises(ValueError, match="tokens must be integers"):
        token_logprobs(hidden, head, tokens[:2])
    with pytest.raises(ValueError, match="support must be integers"):
        token_logprobs(hidden, head, tokens, support=support[:2])
    with pytest.raises(ValueError, match="temperature must be positive"):
        token_logprobs(hidden, head, tokens, temperature=0.0)
