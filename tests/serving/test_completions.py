"""Plain completions against the model read directly, by lm-eval's requests and OpenAI's client."""

import functools

import jax
import numpy as np
import openai
import pytest
from flax import nnx
from oracles import lm_eval_client
from serving.serving_tools import get, post

PATH = "/v1/completions"
WIDTH = 64


@functools.partial(jax.jit, static_argnames="graphdef")
def _logprobs(graphdef, params, tokens):
    return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens)[0])


def logprobs_of(model, tokens: list[int]) -> np.ndarray:
    """[T, V], what the model says after each of the tokens."""
    padded = np.zeros((1, WIDTH), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_logprobs(*nnx.split(model[0]), padded))[0, : len(tokens)]


def greedy(model, tokens: list[int], length: int) -> list[int]:
    for _ in range(length):
        tokens = [*tokens, int(logprobs_of(model, tokens)[-1].argmax())]
    return tokens[-length:]


def complete(server, body: dict) -> dict:
    status, _, answer = post(server.url, PATH, body)
    assert status == 200, answer
    return answer


CONTEXTS = ["The capital of France is", "a", "2 + 2 = "]


@pytest.mark.parametrize("as_text", [False, True])
def test_log_likelihoods_that_lm_eval_reads_are_the_models(as_text, server, model):
    encode = model[1].encode
    contexts, continuations = [encode(c) for c in CONTEXTS], [encode(c) for c in (" P", "b", "4")]
    continuations[1] = greedy(model, contexts[1], 2)  # one of them is the model's own
    if as_text:  # what the model says may be no text
        contexts, continuations = contexts[::2], continuations[::2]
    whole = [a + b for a, b in zip(contexts, continuations)]
    sent = [model[1].decode(tokens) for tokens in whole] if as_text else whole
    answer = complete(server, lm_eval_client.loglikelihood_payload("tiny", sent))
    found = lm_eval_client.parse_logprobs(answer, [len(c) for c in contexts])
    assert len(found) == len(whole)
    for (logprob, is_greedy), context, tokens in zip(found, contexts, whole):
        table = logprobs_of(model, tokens)
        places = range(len(context), len(tokens))
        expected = sum(table[place - 1, tokens[place]] for place in places)
        assert logprob == pytest.approx(float(expected), abs=1e-4)
        assert is_greedy == all(table[p - 1].argmax() == tokens[p] for p in places)
    assert as_text or [is_greedy for _, is_greedy in found] == [False, True, False]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, whole))


def test_what_lm_eval_has_generated_is_greedy_and_ends_at_its_stop(server, model):
    prompts = [model[1].encode(c) for c in CONTEXTS]
    expected = [model[1].decode(greedy(model, p, 4)) for p in prompts]
    payload = lm_eval_client.generation_payload("tiny", prompts, ["\0\0"], 4)
    assert lm_eval_client.parse_generations(complete(server, payload)) == expected
    stop = expected[0][1]
    payload = lm_eval_client.generation_payload("tiny", prompts[:1], [stop], 4)
    assert lm_eval_client.parse_generations(complete(server, payload)) == [
        expected[0].partition(stop)[0]
    ]


def test_a_greedy_token_after_an_echo_is_the_one_that_is_drawn(server, model):
    """The first answer comes of the scorer, the second of the batch."""
    asked = {"model": "tiny", "prompt": "hello", "echo": True, "logprobs": 3, "temperature": 0}
    one, two = (complete(server, asked | {"max_tokens": n})["choices"][0] for n in (1, 2))
    entries = [
        list(zip(*(c["logprobs"][k] for k in ("tokens", "text_offset")))) for c in (one, two)
    ]
    assert entries[0] == entries[1][:-1] and len(entries[0]) == 6
    np.testing.assert_allclose(
        one["logprobs"]["token_logprobs"][1:],
        two["logprobs"]["token_logprobs"][1:-1],
        atol=1e-4,
    )
    assert one["logprobs"]["token_logprobs"][0] is one["logprobs"]["top_logprobs"][0] is None
    assert one["text"].startswith("hello") and two["text"].startswith("hello")
    table = logprobs_of(model, model[1].encode("hello"))
    for place, top in enumerate(one["logprobs"]["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(float(table[place].max()), abs=1e-4)


def test_a_prompt_alone_is_scored_without_a_new_token(server):
    asked = {"model": "tiny", "prompt": "hello", "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = complete(server, asked)["choices"]
    assert choice["text"] == "hello" and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["token_logprobs"]) == 5


def test_openais_client_streams_a_completion_with_an_echo(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    asked = dict(model="tiny", prompt=["hi", "ho"], max_tokens=5, echo=True, seed=3, n=2)
    whole = client.completions.create(**asked)
    texts = [""] * 4
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert [text[:2] for text in texts] == ["hi", "hi", "ho", "ho"]
    assert usage == whole.usage and usage.prompt_tokens == 4


def test_tokens_go_there_and_back_as_lm_evals_remote_tokenizer_asks(server, model):
    tokens = post(server.url, "/tokenize", {"prompt": "Köln", "add_special_tokens": False})[2]
    assert tokens["tokens"] == model[1].encode("Köln")
    assert post(server.url, "/detokenize", {"tokens": tokens["tokens"]})[2]["prompt"] == "Köln"
    info = get(server.url, "/tokenizer_info")[2]
    assert info["eos_token"] == "<|im_end|>" and "im_start" in info["chat_template"]


BAD = {
    "prompt": [None, "", [], 3, [[]], [""], ["a", 3], [[1, "a"]], [[-1]], [[10**6]], [[2**70]],
               [[True]], [1.5], {"a": 1}, "x" * 3000, [[1] * 3000], ["a"] * 300],
    "max_tokens": [-1, 0.5, "1"],
    "logprobs": [-1, 21, True],
    "echo": [1, "yes"],
    "suffix": ["x"],
    "best_of": [3],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_field_that_is_wrong_is_refused(name, server):
    for value in BAD[name]:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1} | {name: value}
        status, _, answer = post(server.url, PATH, body)
        assert status == 400 and answer["error"]["message"], value
