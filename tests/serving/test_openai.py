"""Chat completions by OpenAI's own client."""

import asyncio
import json

import openai
import pytest
from serving.serving_tools import ARGUMENTS, OPENAI_TOOLS, TWO_CALLS, get, post, user

PATH = "/v1/chat/completions"


@pytest.fixture
def client(scripted) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def model_client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def say(scripted, *pieces: str) -> None:
    scripted.engine.batch.scripts[""] = list(pieces)


def accumulate(stream) -> tuple[str, list[dict], list[str], openai.types.CompletionUsage | None]:
    """(content, calls, finish reasons, usage) of a stream, put together as clients do."""
    content, calls, reasons, usage = "", [], [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
                calls[call.index]["arguments"] += call.function.arguments
            reasons += filter(None, [choice.finish_reason])
    return content, calls, reasons, usage


def test_tool_calls_come_whole_and_as_a_stream_alike(scripted, client):
    say(scripted, *TWO_CALLS)
    asked = dict(model="tiny", messages=user("weather?"), tools=OPENAI_TOOLS)
    whole = client.chat.completions.create(**asked)
    choice = whole.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I will look."
    assert [json.loads(c.function.arguments) for c in choice.message.tool_calls] == ARGUMENTS
    content, calls, reasons, usage = accumulate(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert (content, reasons) == ("I will look.", ["tool_calls"])
    assert [json.loads(c["arguments"]) for c in calls] == ARGUMENTS
    assert len({c["id"] for c in calls}) == 2 and {c["name"] for c in calls} == {"weather"}
    tokens = len("".join(TWO_CALLS).encode()) + 1  # bytes, and the end of the turn
    assert usage == whole.usage and usage.completion_tokens == tokens


def test_results_of_tools_go_back_to_the_model_by_their_ids(scripted, client):
    say(scripted, "warm")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "we"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "20 degrees <|im_end|>"},
    ]
    client.chat.completions.create(model="tiny", messages=messages, tools=OPENAI_TOOLS)
    prompt = scripted.engine.batch.prompts[-1]
    assert "<|im_start|>system\nbe brief" in prompt and "\nweb<|im_end|>" in prompt
    assert '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>' in prompt
    assert "20 degrees <|im_end|>" in prompt and "weather of a city" in prompt


def test_a_special_token_that_a_client_spells_is_text(scripted, client):
    say(scripted, "ok")
    client.chat.completions.create(model="tiny", messages=user("<|im_end|>"))
    spelt = client.chat.completions.create(model="tiny", messages=user("<|im_end|>")).usage
    other = client.chat.completions.create(model="tiny", messages=user("<|im_end=>")).usage
    assert spelt.prompt_tokens == other.prompt_tokens  # ten bytes each


@pytest.mark.parametrize(
    "choice, begins, written",
    [
        ("required", '<tool_call>\n{"name": "', 'weather", "arguments": {"city": "Rom"}}'),
        (
            {"type": "function", "function": {"name": "weather"}},
            '<tool_call>\n{"name": "weather", "arguments": ',
            '{"city": "Rom"}}',
        ),
    ],
)
def test_a_call_that_is_required_begins_in_the_prompt(scripted, client, choice, begins, written):
    say(scripted, written, "\n</tool_call>")
    answer = client.chat.completions.create(
        model="tiny:pro", messages=user("?"), tools=OPENAI_TOOLS, tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rom"}')
    assert scripted.engine.batch.prompts[-1].endswith(begins)


def test_one_call_is_enough_where_they_may_not_be_parallel(scripted, client):
    say(scripted, *TWO_CALLS)
    answer = client.chat.completions.create(
        model="tiny", messages=user("?"), tools=OPENAI_TOOLS, parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls) == 1


def test_tools_that_may_not_be_called_are_not_shown(scripted, client):
    say(scripted, *TWO_CALLS)
    answer = client.chat.completions.create(
        model="tiny", messages=user("?"), tools=OPENAI_TOOLS, tool_choice="none"
    )
    assert answer.choices[0].message.tool_calls is None
    assert "weather of a city" not in scripted.engine.batch.prompts[-1]


def test_thoughts_are_apart_from_the_answer(scripted, client):
    say(scripted, "<think>\nhm", "m\n</thi", "nk>\n\n42")
    message = (
        client.chat.completions.create(model="tiny:pro", messages=user("?")).choices[0].message
    )
    assert (message.content, message.reasoning_content) == ("42", "hmm")
    stream = client.chat.completions.create(model="tiny:pro", messages=user("?"), stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "hmm"
    assert "".join(d.content or "" for d in deltas) == "42"


def test_a_stop_sequence_ends_the_answer_before_it(scripted, client):
    say(scripted, "one, tw", "o, three", "never")
    answer = client.chat.completions.create(model="tiny", messages=user("?"), stop=["two", "x"])
    assert answer.choices[0].message.content == "one, "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len("one, two")


def test_the_same_seed_gives_the_same_tokens_as_a_stream_and_at_once(model_client):
    asked = dict(model="tiny", messages=user("hi"), max_tokens=12, seed=5)
    whole = model_client.chat.completions.create(**asked)
    content, _, reasons, _ = accumulate(model_client.chat.completions.create(**asked, stream=True))
    assert content == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    other = model_client.chat.completions.create(**asked | {"seed": 6})
    assert other.choices[0].message.content != content


def test_choices_differ_and_each_has_its_log_probabilities(model_client):
    asked = dict(model="tiny", messages=user("hi"), max_tokens=6, n=3, seed=1)
    answer = model_client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) == 3
    entries = [e for c in answer.choices for e in c.logprobs.content]
    assert all(e.logprob < 0 and len(e.top_logprobs) == 2 for e in entries)
    assert all(
        e.top_logprobs[0].logprob >= max(e.logprob, e.top_logprobs[1].logprob) for e in entries
    )
    assert answer.usage.completion_tokens <= 18


def test_asynchronous_clients_are_answered_together(server):
    async def ask():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        async with client:
            asked = dict(model="tiny", messages=user("hi"), max_completion_tokens=4, temperature=0)
            return await asyncio.gather(
                *(client.chat.completions.create(**asked) for _ in range(4))
            )

    answers = asyncio.run(ask())
    assert len({a.choices[0].message.content for a in answers}) == 1
    assert all(a.usage.completion_tokens <= 4 for a in answers)


def test_models_and_modes_are_listed(client, scripted):
    assert [m.id for m in client.models.list()] == ["tiny", "tiny:lightning", "tiny:pro"]
    assert client.models.retrieve("tiny:pro").id == "tiny:pro"
    with pytest.raises(openai.NotFoundError, match="tinny"):
        client.chat.completions.create(model="tinny", messages=user("?"))
    with pytest.raises(openai.NotFoundError, match="fast"):
        client.chat.completions.create(model="tiny:fast", messages=user("?"))


def test_a_header_names_the_mode_as_a_suffix_does(scripted, client):
    say(scripted, "ok")
    for model, headers in (("tiny:pro", {}), ("tiny", {"x-mmrl-mode": "pro"}), ("tiny", {})):
        client.chat.completions.create(model=model, messages=user("?"), extra_headers=headers)
    text = get(scripted.url, "/metrics")[2]
    assert 'mmrl_prompt_tokens_total{mode="pro"}' in text
    modes = [exchange["mode"] for exchange in scripted.journal.exchanges[-3:]]
    assert modes == ["pro", "pro", "lightning"]


BAD = {
    "messages": [None, [], "hi", [1], [{"role": "king", "content": "x"}], [{"content": "x"}],
                 [{"role": "user", "content": 3}], [{"role": "tool", "content": "x"}],
                 [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                 [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}],
                 [{"role": "assistant", "tool_calls": [
                     {"id": "1", "function": {"name": "f", "arguments": "{"}}]}]],
    "model": [None, 3, "other", "tiny:"],
    "max_tokens": [-1, 0, 1.5, "9", True, {}],
    "max_completion_tokens": [-(10**30), []],
    "temperature": [-0.1, 2.1, "hot", [], True],
    "top_p": [-0.1, 1.1, "x"],
    "top_k": ["x", 1.5],
    "n": [0, -1, 17, 10**9, "2"],
    "stop": [3, [3], ["a"] * 17, {}],
    "seed": ["x", 1.5, 2**70],
    "stream": ["yes", 1],
    "stream_options": [3],
    "logprobs": [3],
    "top_logprobs": [1, 21],
    "tools": [3, [3], [{"type": "function"}], [{"type": "function", "function": {"name": "a b"}}],
              [{"type": "function", "function": {"name": "f", "parameters": [1]}}],
              [{"type": "function", "function": {"name": "f", "parameters": {"properties": [1]}}}]],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, 3],
    "frequency_penalty": [1], "presence_penalty": [0.5], "logit_bias": [{"1": 5}],
    "functions": [[{"name": "f"}]], "modalities": [["audio"]], "metadata": [3], "user": [3],
    "store": [3], "reasoning_effort": [3],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_field_that_is_wrong_is_refused_in_openais_words(name, scripted):
    good = {"model": "tiny", "messages": user("?"), "max_tokens": 4}
    for value in BAD[name]:
        status, _, answer = post(scripted.url, PATH, good | {name: value})
        assert status == (404 if name == "model" and isinstance(value, str) else 400), value
        assert answer["error"]["type"] in ("invalid_request_error", "not_found_error")
        assert name.removesuffix("s") in answer["error"]["message"], value


def test_errors_are_those_of_the_client(client, scripted):
    with pytest.raises(openai.BadRequestError, match="images") as error:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])
    assert error.value.param == "messages[0].content[0]"
    with pytest.raises(openai.BadRequestError, match="prompt is too long: 30.. tokens > 2047"):
        client.chat.completions.create(model="tiny", messages=user("x" * 3000))
    with pytest.raises(openai.BadRequestError, match="prompt is too long: more than 31"):
        client.chat.completions.create(model="tiny", messages=user("x" * 100_000))
    with pytest.raises(openai.BadRequestError, match="constrained decoding"):
        client.chat.completions.create(
            model="tiny", messages=user("?"), response_format={"type": "json_object"}
        )
