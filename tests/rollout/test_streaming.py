"""Token-by-token generation against `generate` and against the model without a cache."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.models import Decoder
from mmrl.rollout import SamplingConfig, generate, streaming
from mmrl.rollout.streaming import Conversation, piece_width
from mmrl.sharding import MeshConfig, make_mesh, shardings

CONFIG = dataclasses.replace(
    HYBRID, vocab_size=29, num_layers=2, layer_pattern=("lightning", "softmax"), num_experts=0
)
CONTEXT = 128
PROMPTS = [[3, 4, 5, 6, 7], [8], list(range(3, 23)), [9, 10] * 20]
GREEDY = SamplingConfig(group_size=1, max_new_tokens=12, temperature=0.0)
SETTINGS = {
    "greedy": GREEDY,
    "plain": dataclasses.replace(GREEDY, temperature=1.0),
    "top-k and top-p": dataclasses.replace(GREEDY, temperature=1.2, top_k=7, top_p=0.9),
    "top-p": dataclasses.replace(GREEDY, temperature=0.7, top_p=0.8),
}
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


@functools.partial(jax.jit, static_argnames="graphdef")
def _read(graphdef, params, tokens):
    return nnx.merge(graphdef, params)(tokens)[0]


def greedy_without_cache(model: Decoder, tokens: list[int], count: int) -> list[int]:
    sequence = list(tokens)
    for _ in range(count):
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(sequence)] = sequence
        sequence.append(int(_read(*nnx.split(model), padded)[0, len(sequence) - 1].argmax()))
    return sequence[len(tokens) :]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_response_has_the_tokens_that_generate_gives(setting, model):
    """Greedy and sampled: with the same key, so that the distributions are the same too."""
    sampling = SETTINGS[setting]
    seeds = jnp.zeros(len(PROMPTS), jnp.int32)
    expected = generate(model, PROMPTS, sampling, KEY, seeds=seeds).tokens[:, 0].tolist()
    conversation = Conversation(model, CONTEXT)
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        assert list(conversation.respond(prompt, sampling, KEY)) == tokens
        assert conversation.ending == "length"


def test_every_turn_continues_as_if_all_had_been_read_at_once(model):
    conversation = Conversation(model, CONTEXT)
    tokens: list[int] = []
    for turn in ([3, 4, 5], [6], list(range(3, 24)), [7, 8]):
        tokens += turn
        expected = greedy_without_cache(model, tokens, 9)
        sampling = dataclasses.replace(GREEDY, max_new_tokens=9)
        assert list(conversation.respond(tokens, sampling, KEY)) == expected
        tokens += expected


def test_a_turn_reads_only_what_is_new(model, monkeypatch):
    read, prefill = [], streaming._prefill
    monkeypatch.setattr(
        streaming, "_prefill", lambda *args: read.append(int(args[-1])) or prefill(*args)
    )
    conversation = Conversation(model, CONTEXT)
    first = PROMPTS[2] + list(conversation.respond(PROMPTS[2], GREEDY, KEY))
    list(conversation.respond([*first, 5, 6, 7], GREEDY, KEY))
    # Of the second turn the last response's last token, 5 and 6; 7 is read by the first step.
    assert read == [len(PROMPTS[2]) - 1, 3]


def test_a_history_that_was_changed_is_read_again(model):
    conversation = Conversation(model, CONTEXT)
    list(conversation.respond([3, 4, 5, 6], GREEDY, KEY))
    other = [3, 4, 9, 6, 5, 4]
    assert list(conversation.respond(other, GREEDY, KEY)) == greedy_without_cache(model, other, 12)


def test_a_response_that_was_left_goes_on_where_it_stopped(model):
    conversation = Conversation(model, CONTEXT)
    expected = greedy_without_cache(model, [3, 4, 5], 12)
    first = list(itertools.islice(conversation.respond([3, 4, 5], GREEDY, KEY), 5))
    assert conversation.ending is None and first == expected[:5]
    rest = dataclasses.replace(GREEDY, max_new_tokens=7)
    assert list(conversation.respond([3, 4, 5, *first], rest, KEY)) == expected[5:]


def test_a_stop_token_ends_a_response_and_belongs_to_it(model):
    expected = greedy_without_cache(model, [3, 4, 5], 12)
    stop = expected[4]
    sampling = dataclasses.replace(GREEDY, stop_ids=(28, stop))
    conversation = Conversation(model, CONTEXT)
    response = list(conversation.respond([3, 4, 5], sampling, KEY))
    assert response == expected[: expected.index(stop) + 1] and conversation.ending == "stop"


@pytest.mark.parametrize("context", [21, 39])
def test_a_response_ends_where_the_context_is_full(context, model):
    """Up to the last slot the tokens are right, also where the prompt's padding does not fit."""
    prompt = PROMPTS[2][: context - 4]
    prompt += [5] * (context - 4 - len(prompt))
    conversation = Conversation(model, context=context)
    response = list(conversation.respond(prompt, GREEDY, KEY))
    # The last token is drawn when the context's last slot is read.
    assert response == greedy_without_cache(model, prompt, 5)
    assert conversation.ending == "context" and len(conversation.tokens) == context


def test_a_model_on_two_devices_gives_the_same_tokens(model):
    mesh = make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])
    graphdef, params = nnx.split(model)
    with jax.set_mesh(mesh):
        sharded = nnx.merge(graphdef, jax.device_put(params, shardings(params, mesh)))
        conversation = Conversation(sharded, CONTEXT)
        first = list(conversation.respond(PROMPTS[2], GREEDY, KEY))
        tokens = [*PROMPTS[2], *first, 5]
        second = list(conversation.respond(tokens, GREEDY, KEY))
    assert first == greedy_without_cache(model, PROMPTS[2], 12)
    assert second == greedy_without_cache(model, tokens, 12)


def test_what_leaves_no_room_is_refused_with_both_numbers(model):
    conversation = Conversation(model, context=16)
    with pytest.raises(ValueError, match="has 17 tokens and the context holds 16"):
        conversation.respond([3] * 17, GREEDY, KEY)
    with pytest.raises(ValueError, match="has 0 tokens"):
        conversation.respond([], GREEDY, KEY)


def test_pieces_are_few_powers_of_two_that_fit():
    widths = {piece_width(tokens, room) for tokens in range(1, 1200) for room in range(512, 1200)}
    assert widths == {16, 32, 64, 128, 256, 512}
    for tokens in range(1, 70):
        for room in range(tokens, 70):
            width = piece_width(tokens, room)
            assert width <= room and width & (width - 1) == 0
            assert width in (16, 32, 64, 128) or width <= tokens


def test_one_decoding_program_serves_all_turns_and_writes_in_place(model):
    conversation = Conversation(model, CONTEXT)
    before = conversation._cache
    first = PROMPTS[1] + list(conversation.respond(PROMPTS[1], GREEDY, KEY))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    programs = len(streaming._PROGRAMS)
    longer = dataclasses.replace(GREEDY, max_new_tokens=20, stop_ids=(1,), group_size=8)
    list(conversation.respond([*first, 4, 5], longer, jax.random.key(9)))
    assert len(streaming._PROGRAMS) == programs
