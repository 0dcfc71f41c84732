"""Messages by Anthropic's own client, and the bodies that Claude Code sends."""

import asyncio
import json

import anthropic
import pytest
from serving.serving_tools import ANTHROPIC_TOOLS, ARGUMENTS, TWO_CALLS, post, user

from mmrl.conversations import Exchange, Journal
from mmrl.conversations.harvest import harvest
from mmrl.conversations.read import read_journals


@pytest.fixture
def client(scripted) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=scripted.url, api_key="any", max_retries=0)


def say(scripted, *pieces: str) -> None:
    scripted.engine.batch.scripts[""] = list(pieces)


def test_tool_use_comes_whole_and_as_a_stream_alike(scripted, client):
    say(scripted, *TWO_CALLS)
    asked = dict(model="tiny", max_tokens=300, messages=user("weather?"), tools=ANTHROPIC_TOOLS)
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_message()
    for message in (whole, final):
        assert message.stop_reason == "tool_use"
        assert message.content[0].text == "I will look."
        assert [block.input for block in message.content[1:]] == ARGUMENTS
        assert {block.name for block in message.content[1:]} == {"weather"}
    assert final.usage.output_tokens == whole.usage.output_tokens == len("".join(TWO_CALLS)) + 2
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3


def test_an_asynchronous_client_streams(scripted):
    say(scripted, "Hel", "lo")

    async def ask() -> list[str]:
        async with anthropic.AsyncAnthropic(
            base_url=scripted.url, api_key="any", max_retries=0
        ) as client:
            asked = dict(model="tiny", max_tokens=9, messages=user("?"))
            async with client.messages.stream(**asked) as stream:
                return [text async for text in stream.text_stream]

    texts = asyncio.run(ask())
    assert len(texts) > 1 and "".join(texts) == "Hello"


CLAUDE_CODE = {
    "model": "tiny",
    "max_tokens": 32_000,
    "temperature": 1,
    "system": [
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief."},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I wonder.", "signature": "mmrl"},
                {"type": "redacted_thinking", "data": "…"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rom"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "20 degrees"}],
                    "is_error": False,
                    "cache_control": {"type": "ephemeral"},
                },
                {"type": "text", "text": "and now?"},
            ],
        },
    ],
    "tools": ANTHROPIC_TOOLS,
    "metadata": {"user_id": "user_ab_account__session_11111111-2222-3333-4444-555555555555"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "stream": True,
    "context_management": {"edits": []},
    "betas": ["x"],
}


def test_what_claude_code_sends_is_understood(scripted):
    say(scripted, "<think>hm</think>fine")
    path = "/v1/messages?beta=true"
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x", "x-api-key": "any"}
    status, found, text = post(scripted.url, path, CLAUDE_CODE, headers)
    assert status == 200 and found["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert [d["type"] for d in deltas] == ["thinking_delta", "signature_delta", "text_delta"]
    prompt = scripted.engine.batch.prompts[-1]
    assert "<|im_start|>system\nYou are an agent.\nBe brief." in prompt
    places = [
        prompt.index(words)
        for words in ("weather?", "Looking.", '{"city": "Rom"}', "20 degrees", "and now?")
    ]
    assert places == sorted(places)
    exchange = scripted.journal.exchanges[-1]
    assert exchange["session"] == "11111111-2222-3333-4444-555555555555"
    assert exchange["messages"][2]["tool_calls"][0]["id"] == "toolu_1"
    assert exchange["messages"][3] == {
        "role": "tool", "content": "20 degrees", "tool_call_id": "toolu_1", "name": "weather",
    }  # fmt: skip
    assert exchange["response"] == {
        "role": "assistant", "content": "fine", "reasoning_content": "hm",
    }  # fmt: skip


@pytest.mark.parametrize("is_error", [True, False])
def test_a_result_that_is_marked_as_an_error_is_harvested_as_one(
    scripted, client, tmp_path, is_error
):
    """Its text alone would not say so."""
    say(scripted, '<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call>')
    asked = dict(model="tiny", max_tokens=90, tools=ANTHROPIC_TOOLS)
    (call,) = client.messages.create(**asked, messages=user("weather?")).content
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "which country?"}
    messages = [
        *user("weather?"),
        {"role": "assistant", "content": [call.model_dump()]},
        {"role": "user", "content": [result | {"is_error": is_error}]},
    ]
    client.messages.create(**asked, messages=messages)
    journal = Journal(tmp_path)
    for fields in scripted.journal.exchanges[-2:]:
        journal.record(Exchange(**fields))
    rows = harvest(read_journals([tmp_path])).rows
    assert [row["metadata"]["reasons"] for row in rows] == [["tool_error"]] * is_error
    assert [row["prompt"] for row in rows] == [user("weather?")] * is_error


def test_thoughts_are_a_block_unless_they_are_disabled(scripted, client):
    say(scripted, "<think>hm</think>fine")
    asked = dict(model="tiny:pro", max_tokens=50, messages=user("?"))
    assert [b.type for b in client.messages.create(**asked).content] == ["thinking", "text"]
    quiet = client.messages.create(**asked, thinking={"type": "disabled"})
    assert [b.type for b in quiet.content] == ["text"]


def test_a_stop_sequence_is_named(scripted, client):
    say(scripted, "one, tw", "o, three")
    asked = dict(model="tiny", max_tokens=50, messages=user("?"), stop_sequences=["two"])
    message = client.messages.create(**asked)
    assert (message.content[0].text, message.stop_reason) == ("one, ", "stop_sequence")
    assert message.stop_sequence == "two"


def test_a_tool_that_must_be_used_begins_in_the_prompt(scripted, client):
    say(scripted, '{"city": "Rom"}}</tool_call>')
    message = client.messages.create(
        model="tiny",
        max_tokens=50,
        messages=user("?"),
        tools=ANTHROPIC_TOOLS,
        tool_choice={"type": "tool", "name": "weather"},
    )
    assert [(b.name, b.input) for b in message.content] == [("weather", {"city": "Rom"})]


def test_tokens_are_counted_as_they_are_used(scripted, client):
    say(scripted, "ok")
    asked = dict(model="tiny", messages=user("how many?"), system="s", tools=ANTHROPIC_TOOLS)
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == client.messages.create(**asked, max_tokens=3).usage.input_tokens


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == ["tiny", "tiny:lightning", "tiny:pro"]


def test_the_random_model_answers(server):
    client = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    message = client.messages.create(
        model="tiny", max_tokens=5, messages=user("hi"), extra_body={"temperature": 0}
    )
    assert message.usage.output_tokens <= 5
    assert message.stop_reason in ("max_tokens", "end_turn")


BAD = {
    "messages": [None, [], "hi", [1], [{"role": "tool", "content": "x"}],
                 [{"role": "user", "content": 3}], [{"role": "user", "content": ["x"]}],
                 [{"role": "user", "content": [{"type": "text"}]}],
                 [{"role": "user", "content": [{"type": "image", "source": {}}]}],
                 [{"role": "user", "content": [{"type": "tool_result"}]}],
                 [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]],
    "max_tokens": [None, -1, 0, "9"],
    "system": [3, [{"type": "image"}]],
    "temperature": [-1, "x"],
    "tools": [3, [{"name": "f"}], [{"type": "web_search_20250305", "name": "web_search"}],
              [{"name": "f", "input_schema": {"properties": 3}}]],
    "thinking": [3, {"type": "often"}],
    "stop_sequences": [[1]],
    "output_config": [{"format": {"type": "json_schema"}}],
    "metadata": [3, {"user_id": 3}],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_field_that_is_wrong_is_refused_in_anthropics_words(name, scripted):
    good = {"model": "tiny", "messages": user("?"), "max_tokens": 4}
    for value in BAD[name]:
        status, headers, answer = post(scripted.url, "/v1/messages", good | {name: value})
        assert status == 400 and answer["type"] == "error", value
        assert answer["error"]["type"] == "invalid_request_error"
        assert headers["request-id"] == answer["request_id"]
        words = "user_id" if value == {"user_id": 3} else name.removesuffix("s")
        assert words in answer["error"]["message"], value


def test_errors_are_those_of_the_client(client, scripted):
    asked = dict(max_tokens=5, messages=user("?"))
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        client.messages.create(model="claude", **asked)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 30.. tokens > 2047"):
        client.messages.create(model="tiny", max_tokens=5, messages=user("x" * 3000))
