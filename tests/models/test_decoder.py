"""The decoder against an independent float64 forward pass, with and without its cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.numpy_decoder import decoder as numpy_decoder

from mmrl.compilation import model_jit
from mmrl.models import Cache, Decoder, DecoderConfig, minimax_m1, parameter_count


def float64_params(model: Decoder):
    tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def expected_logits(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    params = float64_params(model)
    return np.stack([numpy_decoder(row, params, model.config) for row in tokens])


@functools.partial(jax.jit, static_argnames="graphdef")
def _forward(graphdef, params, tokens, segment_ids, cache):
    return nnx.merge(graphdef, params)(tokens, segment_ids=segment_ids, cache=cache)


def forward(model: Decoder, tokens, segment_ids=None, cache=None):
    """The model's call, compiled once a shape."""
    return _forward(*nnx.split(model), tokens, segment_ids, cache)


def relative_error(actual, expected) -> float:
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("postnorm", "scan_layers"), [(True, True), (False, True), (True, False)])
def test_logits_equal_a_float64_forward_pass_written_from_the_formulas(
    postnorm, scan_layers, hybrid, tokens
):
    config = dataclasses.replace(hybrid.config, postnorm=postnorm, scan_layers=scan_layers)
    model = Decoder(config, nnx.Rngs(0))
    logits, cache = forward(model, tokens)
    assert cache is None and logits.dtype == jnp.float32
    assert relative_error(logits, expected_logits(model, tokens)) < 1e-5


def test_decoding_token_by_token_equals_the_full_forward_at_every_position(hybrid, tokens):
    expected = expected_logits(hybrid, tokens)
    cache = Cache.create(hybrid.config, len(tokens), tokens.shape[1])
    for t in range(tokens.shape[1]):
        logits, cache = forward(hybrid, tokens[:, t : t + 1], cache=cache)
        assert relative_error(logits[:, 0], expected[:, t]) < 1e-5
    assert cache.lengths.tolist() == [tokens.shape[1]] * len(tokens)


@pytest.mark.parametrize("room", [0, 300])
def test_layers_apart_decode_as_a_full_forward_pass(room, hybrid, tokens):
    """Keys are read in place, and with room to spare in blocks, as far as the cache is filled."""
    expected = expected_logits(hybrid, tokens)

    @functools.partial(jax.jit, static_argnames="graphdef")
    def decode(graphdef, params, token, cache):
        model = nnx.merge(graphdef, params)
        return model(token, cache=cache, layers=model.loop_weights())

    cache = Cache.create(hybrid.config, len(tokens), tokens.shape[1] + room).unstacked()
    _, cache = forward(hybrid, tokens[:, :18], cache=cache)
    for t in range(18, tokens.shape[1]):
        logits, cache = decode(*nnx.split(hybrid), tokens[:, t : t + 1], cache)
        assert relative_error(logits[:, 0], expected[:, t]) < 1e-5


def test_the_weights_of_a_loop_are_those_that_a_step_would_cast(hybrid, tokens, monkeypatch):
    """In bfloat16, stacked as on a TPU or apart as on a CPU: the very logits of the model's own."""
    config = dataclasses.replace(hybrid.config, dtype="bfloat16")
    model = Decoder(config, nnx.Rngs(0))

    @functools.partial(model_jit, static_argnames=("graphdef", "own"))
    def decode(graphdef, params, own):
        model = nnx.merge(graphdef, params)
        layers = None if own else model.loop_weights()
        cache = Cache.create(config, len(tokens), 4)
        return model(tokens[:, :1], cache=model.cache_of_loop(config, cache), layers=layers)[0]

    for apart in (True, False):
        monkeypatch.setattr(Decoder, "unstacks", staticmethod(lambda *_, apart=apart: apart))
        jax.clear_caches()
        weights = jax.eval_shape(lambda: model.loop_weights())
        of_run = weights[0][0] if apart else weights[0]
        kinds = {path[-1]: x.dtype for path, x in nnx.to_flat_state(of_run)}
        assert kinds.pop("router") == jnp.float32
        assert set(kinds.values()) == {jnp.dtype("bfloat16")}
        found, expected = (decode(*nnx.split(model), own) for own in (False, True))
        np.testing.assert_array_equal(found, expected)


def test_a_prompt_read_in_pieces_with_padding_between_equals_the_whole(hybrid, tokens):
    pieces = [tokens[:, :5], tokens[:, 5:12], tokens[:, 12:]]
    cache = Cache.create(hybrid.config, len(tokens), 64)
    got = []
    for piece in pieces:
        padded = np.pad(piece, ((0, 0), (0, 3)))
        segments = np.pad(np.ones_like(piece), ((0, 0), (0, 3)))
        logits, cache = forward(hybrid, padded, segments, cache)
        got.append(logits[:, : piece.shape[1]])
    assert relative_error(np.concatenate(got, axis=1), expected_logits(hybrid, tokens)) < 1e-5


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_fork_continues_its_prompt_as_if_each_row_had_read_it(scan_layers, hybrid, tokens):
    hybrid = Decoder(dataclasses.replace(hybrid.config, scan_layers=scan_layers), nnx.Rngs(0))
    prompts, group = tokens[:2, :9], 3
    continuations = np.asarray(jax.random.randint(jax.random.key(2), (6, 7), 0, 37))
    _, cache = forward(hybrid, prompts, cache=Cache.create(hybrid.config, 2, 9))
    whole = np.concatenate([np.repeat(prompts, group, axis=0), continuations], axis=1)
    expected = expected_logits(hybrid, whole)[:, 9:]
    at_once, _ = forward(hybrid, continuations, cache=cache.fork(group, slots=0))
    assert relative_error(at_once, expected) < 1e-5
    forked = cache.fork(group, slots=7)
    for t in range(7):
        logits, forked = forward(hybrid, continuations[:, t : t + 1], cache=forked)
        assert relative_error(logits[:, 0], expected[:, t]) < 1e-5


@pytest.mark.parametrize("remat", ["none", "projections"])
def test_layers_compiled_apart_have_the_gradients_of_scanned_ones(remat, hybrid, tokens):
    def gradients(scan_layers: bool, remat: str):
        config = dataclasses.replace(hybrid.config, scan_layers=scan_layers, remat=remat)
        graphdef, params = nnx.split(Decoder(config, nnx.Rngs(0)))

        def loss(params):
            model = nnx.merge(graphdef, params)
            _, cache = model(tokens[:2, :9], cache=Cache.create(config, 2, 9))
            logits, _ = model(np.resize(tokens, (4, 21))[:, 9:], cache=cache.fork(2, slots=0))
            return jnp.square(logits).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    pairs = zip(gradients(False, remat), gradients(True, "none"), strict=True)
    assert all(relative_error(apart, scanned) < 1e-5 for apart, scanned in pairs)


def test_a_fork_cannot_be_forked(hybrid):
    cache = Cache.create(hybrid.config, 1, 4).fork(2, 4)
    with pytest.raises(ValueError, match="cannot be forked again"):
        cache.fork(2, 4)


def test_packed_rows_equal_separate_rows(hybrid, tokens):
    a, b = tokens[:1, :8], tokens[1:2, :11]
    packed = np.concatenate([a, b, np.zeros((1, 2), int)], axis=1)
    segments = np.asarray([[1] * 8 + [2] * 11 + [0] * 2])
    logits, _ = forward(hybrid, packed, segments)
    assert relative_error(logits[:, :8], expected_logits(hybrid, a)) < 1e-5
    assert relative_error(logits[:, 8:19], expected_logits(hybrid, b)) < 1e-5


def test_gradients_do_not_depend_on_how_the_prompt_is_shared(hybrid, tokens):
    """Through a fork, the prompt's gradient is the sum over the samples that continue it."""
    prompts, group = tokens[:1, :9], 2
    rest = tokens[1:, :6]
    graphdef, params = nnx.split(hybrid)

    def loss(logits):
        return jnp.sum(jnp.sin(logits))

    def shared(params):
        model = nnx.merge(graphdef, params)
        _, cache = model(prompts, cache=Cache.create(model.config, 1, 9))
        return loss(model(rest, cache=cache.fork(group, 0))[0])

    def repeated(params):
        whole = np.concatenate([np.repeat(prompts, group, axis=0), rest], axis=1)
        return loss(nnx.merge(graphdef, params)(whole)[0][:, 9:])

    one, other = jax.jit(jax.grad(shared))(params), jax.jit(jax.grad(repeated))(params)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert relative_error(a, np.asarray(b, np.float64)) < 2e-4


@pytest.mark.parametrize("remat", ["full", "projections", "products"])
def test_rematerialisation_changes_no_gradient(remat, hybrid, tokens):
    graphdef, params = nnx.split(hybrid)
    other = Decoder(dataclasses.replace(hybrid.config, remat=remat), nnx.Rngs(0))
    graphdef_remat, _ = nnx.split(other)

    def gradient(graphdef):
        def loss(params):
            return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(tokens)[0]))

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(
        *(jax.tree.leaves(gradient(g)) for g in (graphdef, graphdef_remat)), strict=True
    ):
        assert relative_error(a, np.asarray(b, np.float64)) < 2e-5


def test_bfloat16_compute_keeps_the_head_in_float32(hybrid, tokens):
    model = Decoder(dataclasses.replace(hybrid.config, dtype="bfloat16"), nnx.Rngs(0))
    logits, _ = forward(model, tokens)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, expected_logits(hybrid, tokens)) < 0.1


def test_a_bfloat16_head_rounds_the_logits_that_both_sampler_and_trainer_read(hybrid):
    """Rounded logits within bfloat16's error, and the trainer's softmax of just these."""
    model = Decoder(dataclasses.replace(hybrid.config, head_dtype="bfloat16"), nnx.Rngs(0))
    rng = np.random.default_rng(0)
    vocabulary, width = model.head.shape
    hidden = rng.normal(size=(2, 3, width)).astype(np.float32)
    tokens = rng.integers(0, vocabulary, (2, 3))
    support = np.stack([tokens, (tokens + 1) % vocabulary, np.full_like(tokens, -1)], axis=-1)
    support[0, 0] = -1  # a position that nothing truncated
    logits = np.asarray(nnx.jit(Decoder.logits)(model, hidden))
    assert np.array_equal(logits, logits.astype(jnp.bfloat16).astype(np.float32))
    exact = hidden.astype(np.float64) @ np.asarray(model.head[...], np.float64).T
    assert 1e-4 < relative_error(logits, exact) < 1e-2
    for temperature in (0.7, jnp.asarray([[0.7] * 3, [1.3] * 3])):
        score = functools.partial(Decoder.token_logprobs, temperature=temperature)
        logprobs, entropy = nnx.jit(score)(model, hidden, tokens, support)
        for b, t in np.ndindex(2, 3):
            z = logits[b, t] / np.broadcast_to(temperature, (2, 3))[b, t]
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            kept = support[b, t][support[b, t] >= 0]
            whole = p[kept].sum() if len(kept) else 1.0
            assert logprobs[b, t] == pytest.approx(np.log(p[tokens[b, t]] / whole), abs=1e-5)
            assert entropy[b, t] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)


def test_the_real_m1_has_the_parameters_of_the_released_checkpoint():
    assert parameter_count(minimax_m1()) == (456_089_655_296, 45_944_920_064)


def test_compile_time_follows_the_pattern_and_not_the_depth():
    """The lowered program of 32 groups is as long as that of 2."""

    def program_length(num_layers: int) -> int:
        config = minimax_m1(num_layers=num_layers)
        graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
        tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
        forward = jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens)[0])
        return len(forward.lower(params, tokens).as_text().splitlines())

    assert program_length(256) == pytest.approx(program_length(16), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 9}, "must be a multiple of the 4 layers"),
        ({"num_heads": 3}, "must be a multiple of num_kv_heads=2"),
        ({"rotary_dim": 10}, "at most head_dim=8"),
        ({"experts_per_token": 5}, "must lie in 1..4"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ],
)
def test_a_config_that_fits_no_model_says_what_to_change(changes, message, hybrid):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(hybrid.config, **changes)


def test_dense_models_are_configs_of_the_same_decoder(tokens):
    config = DecoderConfig(
        vocab_size=37, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=32, attention_bias=True, qk_norm="head", tie_embeddings=True,
    )  # fmt: skip
    model = Decoder(config, nnx.Rngs(0))
    whole, _ = forward(model, tokens)
    cache = Cache.create(config, len(tokens), tokens.shape[1])
    first, cache = forward(model, tokens[:, :10], cache=cache)
    second, _ = forward(model, tokens[:, 10:], cache=cache)
    assert relative_error(np.concatenate([first, second], axis=1), np.asarray(whole)) < 1e-5
