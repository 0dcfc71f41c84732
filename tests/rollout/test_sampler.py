"""The sampler: what it draws, when it stops, and that the trainer scores the same numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from oracles.small_models import HYBRID

from mmrl.data.records import Status
from mmrl.models import Decoder
from mmrl.rollout import SamplingConfig, generate, score
from mmrl.rollout.sampler import generate_program, packed_size, pad_prompts, program_arguments
from mmrl.rollout.sampling import RepetitionStop

CONFIG = dataclasses.replace(HYBRID, vocab_size=29, num_layers=4)
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10], [11, 12, 13, 14, 15, 16, 17]]
SAMPLING = SamplingConfig(group_size=3, max_new_tokens=12, stop_ids=(1, 2))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


@functools.partial(jax.jit, static_argnames="graphdef")
def _read(graphdef, params, tokens):
    return nnx.merge(graphdef, params)(tokens)[0]


def full_logits(model: Decoder, sequence: list[int]) -> np.ndarray:
    """Logits of one whole sequence, read without any cache."""
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(sequence)] = sequence
    return np.asarray(_read(*nnx.split(model), padded)[0, : len(sequence)])


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


SETTINGS = {
    "plain": {},
    "temperature": dict(temperature=0.6),
    "top-k and top-p": dict(temperature=1.2, top_k=7, top_p=0.9),
    "top-p": dict(top_p=0.8),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_trainer_scores_what_the_sampler_recorded(setting, model):
    """On-policy ratios are 1 under any truncation, because both normalise over the same ids."""
    sampling = dataclasses.replace(SAMPLING, **SETTINGS[setting])
    rollout = generate(model, PROMPTS, sampling, jax.random.key(0))
    scored = jax.jit(lambda r: score(model, r, sampling.temperature))(rollout)
    difference = np.abs(scored["logprobs"] - rollout.behaviour_logprobs) * rollout.mask
    assert rollout.mask.sum() > 40
    assert difference.sum() / rollout.mask.sum() < 1e-6
    assert difference.max() < 1e-4


def gradients(model: Decoder, rollout, packed: int | None):
    """Of a sum over the response tokens, each with a weight of its own."""
    graphdef, params = nnx.split(model)
    weights = rollout.mask * np.random.default_rng(0).standard_normal(rollout.mask.shape)

    def loss(params):
        scored = score(nnx.merge(graphdef, params), rollout, 1.2, packed)
        return (weights * (scored["logprobs"] + 0.1 * scored["entropy"])).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


def test_packed_responses_have_the_gradients_of_padded_ones(model):
    sampling = SamplingConfig(group_size=3, max_new_tokens=16, temperature=1.2, top_k=7)
    limits = np.asarray([[1, 16, 3], [9, 2, 2], [4, 1, 5], [7, 0, 6]])
    rng = jax.random.key(0)
    rollout = generate(model, PROMPTS, sampling, rng, max_new_tokens=limits)
    size = packed_size(np.asarray(rollout.lengths), 16)
    assert limits.sum() <= size < limits.size * 16 / 2
    (value, packed), (expected_value, padded) = (
        gradients(model, rollout, size) for size in (size, None)
    )
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(packed), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(np.abs(y).max(), 1))


def largest_array(jaxpr) -> int:
    """Elements of the largest array that a jaxpr or one within it makes."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [x.aval.size for x in equation.outvars]
        sizes += map(largest_array, jaxprs_in_params(equation.params))
    return max(sizes)


def test_what_the_backward_pass_keeps_of_a_prompt_grows_with_the_layers_not_their_square():
    def kept(layers: int) -> int:
        config = dataclasses.replace(CONFIG, num_layers=layers, remat="full")
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
        arrays = (np.zeros((8, 16), np.int32), np.full(8, 16, np.int32))

        model = nnx.merge(graphdef, shapes)
        arguments = program_arguments(model, arrays, SAMPLING, jax.random.key(0))

        def total(params, rollout):
            return score(nnx.merge(graphdef, params), rollout, 1.0)["logprobs"].sum()

        gradient = jax.make_jaxpr(jax.grad(total))(shapes, generate_program.eval_shape(*arguments))
        return largest_array(gradient.jaxpr)

    assert kept(32) <= 2 * kept(16)


@pytest.mark.parametrize(
    ("lengths", "slices", "size"),
    [([1, 1, 1, 1], 1, 8), ([9, 9, 9, 9], 1, 40), ([16, 1, 16, 1], 2, 20), ([16] * 4, 1, None)],
)
def test_the_packed_size_is_the_least_number_of_eighths_that_holds_each_slice(
    lengths, slices, size
):
    assert packed_size(np.asarray(lengths).reshape(4, 1), 16, slices) == size


def test_recorded_log_probabilities_are_those_of_the_model_without_a_cache(model):
    rollout = generate(model, PROMPTS, SAMPLING, jax.random.key(0))
    for p, prompt in enumerate(PROMPTS):
        for g in range(SAMPLING.group_size):
            tokens = rollout.tokens[p, g, : rollout.lengths[p, g]].tolist()
            logits = full_logits(model, prompt + tokens)[len(prompt) - 1 :]
            expected = [log_softmax(logits[t])[token] for t, token in enumerate(tokens)]
            got = rollout.behaviour_logprobs[p, g, : len(tokens)]
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_greedy_decoding_takes_the_argmax_of_the_model_without_a_cache(model):
    sampling = dataclasses.replace(SAMPLING, temperature=0.0, group_size=1, stop_ids=())
    rollout = generate(model, PROMPTS, sampling, jax.random.key(0))
    for p, prompt in enumerate(PROMPTS):
        sequence = list(prompt)
        for _ in range(sampling.max_new_tokens):
            sequence.append(int(full_logits(model, sequence)[-1].argmax()))
        assert rollout.tokens[p, 0].tolist() == sequence[len(prompt) :]


def test_a_response_ends_with_its_stop_token_or_at_its_limit(model):
    limits = jnp.asarray([[12, 5, 1], [12, 12, 12], [3, 3, 3], [12, 2, 12]])
    rollout = generate(model, PROMPTS, SAMPLING, jax.random.key(4), max_new_tokens=limits)
    for index in np.ndindex(4, 3):
        length, tokens = int(rollout.lengths[index]), rollout.tokens[index].tolist()
        stops = [t for t, token in enumerate(tokens[:length]) if token in SAMPLING.stop_ids]
        if stops:
            assert rollout.status[index] == Status.COMPLETED and stops == [length - 1]
        else:
            assert rollout.status[index] == Status.TRUNCATED and length == limits[index]
        assert tokens[length:] == [0] * (12 - length)
        assert rollout.mask[index].tolist() == [1.0] * length + [0.0] * (12 - length)
    assert {int(s) for s in rollout.status.ravel()} == {Status.COMPLETED, Status.TRUNCATED}


def test_a_prompt_gives_the_same_response_whatever_batch_it_sits_in(model):
    rng = jax.random.key(9)
    batch = generate(model, PROMPTS, SAMPLING, rng)
    for p, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], SAMPLING, rng, seeds=jnp.asarray([p]))
        assert alone.tokens[0].tolist() == batch.tokens[p].tolist()
        np.testing.assert_allclose(
            alone.behaviour_logprobs[0], batch.behaviour_logprobs[p], atol=1e-5
        )
    fewer = generate(model, PROMPTS, dataclasses.replace(SAMPLING, group_size=2), rng)
    assert fewer.tokens.tolist() == batch.tokens[:, :2].tolist()


def test_samples_of_a_group_differ(model):
    rollout = generate(model, PROMPTS, SAMPLING, jax.random.key(0))
    assert rollout.tokens[0, 0].tolist() != rollout.tokens[0, 1].tolist()


@pytest.mark.parametrize(("loop_copies", "copies"), [(False, 1 / 3), (True, 4 / 3)])
def test_sampling_copies_the_parameters_once_if_at_all(loop_copies, copies):
    """Temporaries hold one of the 4 layers' weights at a time, or all of them cut into layers."""
    config = dataclasses.replace(
        CONFIG, hidden_size=256, intermediate_size=512, num_heads=8, loop_copies=loop_copies
    )
    model = Decoder(config, nnx.Rngs(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    sampling = SamplingConfig(group_size=1, max_new_tokens=4)
    args = program_arguments(model, [[3, 4]], sampling, jax.random.key(0))
    generate_program.clear_cache()
    temporary = generate_program.lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert temporary < size * copies


def test_rows_that_move_together_draw_the_same_tokens(model):
    """12 rows, then 6 and 3, in an order of their own: status, limits and prompts go along."""
    limits = np.asarray([[12, 1, 9], [2, 2, 12], [0, 5, 3], [4, 11, 6]])
    drawn = [
        generate(
            model,
            PROMPTS,
            dataclasses.replace(SAMPLING, compactions=compactions),
            jax.random.key(4),
            max_new_tokens=limits,
        )
        for compactions in (0, 2)
    ]
    plain, compacted = drawn
    assert compacted.tokens.tolist() == plain.tokens.tolist()
    assert compacted.mask.tolist() == plain.mask.tolist()
    assert compacted.status.tolist() == plain.status.tolist()
    assert plain.lengths.max() > 8 and (plain.lengths < 6).sum() > 6
    np.testing.assert_allclose(compacted.behaviour_logprobs, plain.behaviour_logprobs, atol=1e-5)


def test_an_impossible_prompt_is_named():
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        pad_prompts([[3], []])
    with pytest.raises(ValueError, match="prompt 0 has 3 tokens; it must have 1 to 2"):
        pad_prompts([[3, 4, 5]], length=2)


@pytest.mark.parametrize("setting", ["plain", "top-k and top-p"])
def test_prompts_with_temperatures_of_their_own_are_as_if_each_had_been_alone(setting, model):
    sampling = dataclasses.replace(SAMPLING, **SETTINGS[setting])
    temperatures = np.asarray([0.5, 1.0, 2.0, 0.7], np.float32)
    key = jax.random.key(4)
    mixed = generate(model, PROMPTS, sampling, key, temperatures=temperatures)
    scored = jax.jit(lambda r: score(model, r, 123.0))(mixed)
    for row, temperature in enumerate(temperatures.tolist()):
        one = dataclasses.replace(sampling, temperature=temperature)
        alone = generate(model, PROMPTS, one, key)
        np.testing.assert_array_equal(mixed.tokens[row], alone.tokens[row])
        np.testing.assert_allclose(
            mixed.behaviour_logprobs[row], alone.behaviour_logprobs[row], atol=1e-5
        )
        expected = jax.jit(lambda r, t=temperature: score(model, r, t))(alone)
        kept = np.asarray(alone.mask[row]) > 0
        for name in ("logprobs", "entropy"):
            found = np.asarray(scored[name][row])[kept]
            np.testing.assert_allclose(found, np.asarray(expected[name][row])[kept], atol=1e-5)
    # The temperatures matter: the same rows at another one draw other tokens.
    other = generate(model, PROMPTS, sampling, key, temperatures=temperatures[::-1])
    assert (np.asarray(other.tokens) != np.asarray(mixed.tokens)).any()


def streak_ends(logprobs: np.ndarray, tokens: int, probability: float) -> int | None:
    """Index of the token that completes a streak, by a plain loop."""
    streak = 0
    for t, logprob in enumerate(logprobs):
        streak = streak + 1 if np.exp(logprob) > probability else 0
        if streak == tokens:
            return t
    return None


def test_a_response_ends_at_the_first_streak_of_certain_tokens(model):
    """Drawn tokens are the same with and without; only where they end differs."""
    endless = dataclasses.replace(SAMPLING, max_new_tokens=24, stop_ids=(1,))
    whole = generate(model, PROMPTS, endless, jax.random.key(2))
    stop = RepetitionStop(tokens=3, probability=0.04)
    early = generate(
        model, PROMPTS, dataclasses.replace(endless, repetition_stop=stop), jax.random.key(2)
    )
    ended = 0
    for index in np.ndindex(4, 3):
        length = int(whole.lengths[index])
        place = streak_ends(whole.behaviour_logprobs[index][:length], 3, 0.04)
        by_stop_token = place == length - 1 and whole.status[index] == Status.COMPLETED
        if place is None or by_stop_token:
            assert early.status[index] == whole.status[index] and early.lengths[index] == length
        else:
            ended += 1
            assert early.status[index] == Status.REPETITION and early.lengths[index] == place + 1
        kept = int(early.lengths[index])
        assert early.tokens[index][:kept].tolist() == whole.tokens[index][:kept].tolist()
        assert early.mask[index].sum() == kept
    assert 0 < ended < 12


@pytest.mark.parametrize("settings", [dict(tokens=0), dict(probability=1.0)])
def test_an_impossible_repetition_stop_is_refused(settings):
    with pytest.raises(ValueError, match="repetition_stop needs"):
        RepetitionStop(**settings)
