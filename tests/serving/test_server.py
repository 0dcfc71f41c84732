"""A request that is hostile, slow, too much or gone harms only itself."""

import asyncio
import contextlib
import http.client
import json
import socket
import time

import anthropic
import openai
import pytest
from serving.conftest import make_engine, serving
from serving.serving_tools import ENDLESS, get, post, user

import mmrl.serving.engine
from mmrl.serving.limits import Admission, ApiError, Limits

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": user("hi"), "max_tokens": 6, "seed": 4}


def eventually(condition, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@contextlib.contextmanager
def streaming(served, body: dict):
    """A stream whose first bytes have come."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    data = json.dumps(body | {"stream": True})
    connection.request("POST", CHAT, data, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200 and response.readline().startswith(b"data: ")
    try:
        yield response
    finally:
        response.close()
        connection.close()


def test_thirty_two_streams_all_begin_before_one_has_ended(server):
    async def one(client, number: int, order: list[tuple[str, int]]):
        stream = await client.chat.completions.create(
            model="tiny", messages=user(f"{number}"), max_tokens=64, seed=number, stream=True
        )
        text = ""
        async for chunk in stream:
            (choice,) = chunk.choices
            if (choice.delta.content or choice.finish_reason) and not text:
                order.append(("begun", number))
            text += choice.delta.content or ""
            if choice.finish_reason == "length":
                order.append(("ended", number))
        return text

    async def everything():
        order: list[tuple[str, int]] = []
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        async with client:
            texts = await asyncio.gather(*(one(client, n, order) for n in range(32)))
            alone = await one(client, 7, [])
        return order, texts, alone

    order, texts, alone = asyncio.run(everything())
    begun = [n for what, n in order if what == "begun"]
    assert sorted(begun) == list(range(32))
    first_end = next(i for i, (what, _) in enumerate(order) if what == "ended")
    assert first_end >= 32 and len(order) - 32 > 16
    assert texts[7] == alone


HOSTILE = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xff", b"{" * 100_000, b"[" * 99_999,
    b'{"model": "tiny", "messages": ' + b"[" * 50_000 + b"]" * 49_000,
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": -5}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "top_k": 1e99}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
    b'{"model": {"a": []}, "messages": [{"role": "user", "content": "x"}]}',
]  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages", "/v1/feedback"])
def test_hostile_bodies_are_refused_beside_a_stream_that_goes_on(path, server):
    expected = post(server.url, CHAT, HELLO)[2]["choices"][0]["message"]["content"]
    with streaming(server, HELLO | {"max_tokens": 64}) as stream:
        for body in HOSTILE:
            status, _, answer = post(server.url, path, body)
            assert status == 400 and answer["error"]["message"], body[:80]
        rest = stream.read().decode()
    assert rest.endswith("data: [DONE]\n\n") and "error" not in rest
    assert post(server.url, CHAT, HELLO)[2]["choices"][0]["message"]["content"] == expected


def test_a_body_that_is_too_big_of_another_kind_or_never_comes_has_its_status(server):
    assert post(server.url, CHAT, b'{"x": "' + b"x" * 200_000 + b'"}')[0] == 413
    status, _, answer = post(server.url, "/v1/messages", b"x" * 200_000)
    assert (status, answer["error"]["type"]) == (413, "request_too_large")
    assert post(server.url, CHAT, b"{}", {"content-type": "text/plain"})[0] == 415
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        assert post(server.url, CHAT, HELLO)[0] == 200
        assert b" 408 " in half.recv(1000)


def test_what_is_not_there_and_what_is_no_http_is_answered(server):
    status, _, answer = get(server.url, "/v1/nothing")
    assert status == 404 and "/v1/nothing" in answer["error"]["message"]
    assert get(server.url, CHAT)[0] == 405
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        assert b" 400 " in connection.recv(1000)
    assert get(server.url, "/")[0] == 200


def test_a_client_that_goes_away_leaves_its_row_at_once(server, monkeypatch):
    batch = server.engine.batch
    advance = batch._advance
    monkeypatch.setattr(batch, "_advance", lambda *work: (time.sleep(0.02), advance(*work))[1])
    for stream in (True, False):
        server.journal.exchanges.clear()
        body = HELLO | {"max_tokens": 480, "stream": stream}
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                b"content-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(data), data)
            )
            assert eventually(lambda: batch.load[0] == 1)
        assert eventually(lambda: server.journal.exchanges)
        (exchange,) = server.journal.exchanges
        assert exchange["finish_reason"] == "cancelled" and exchange["completion_tokens"] < 480
        assert eventually(lambda: batch.load == (0, 0) and len(batch._free) == batch.rows)


def test_a_client_that_does_not_read_holds_up_nobody(scripted):
    scripted.engine.batch.scripts |= {"slow": ["x" * 100] * 400, "quick": ["done"]}
    body = json.dumps({"model": "tiny", "messages": user("slow"), "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", scripted.port))
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        closed = scripted.engine.batch.closed
        assert eventually(lambda: scripted.engine.batch.closed > closed)  # drawn, not yet read
        answer = post(scripted.url, CHAT, {"model": "tiny", "messages": user("quick")})[2]
        assert answer["choices"][0]["message"]["content"] == "done"


def test_a_failure_within_one_request_is_its_own(server, monkeypatch):
    class Failing(mmrl.serving.engine.StopFinder):
        def push(self, text):
            if self._stop == ("boom",):
                raise RuntimeError("boom")
            return super().push(text)

    monkeypatch.setattr(mmrl.serving.engine, "StopFinder", Failing)
    with streaming(server, HELLO | {"max_tokens": 64}) as stream:
        status, _, answer = post(server.url, CHAT, HELLO | {"stop": "boom"})
        assert status == 500 and answer["error"]["type"] == "server_error"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.APIError, match="failed"):
            list(client.chat.completions.create(**HELLO, stop="boom", stream=True))
        anthropics = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
        asked = dict(model="tiny", max_tokens=5, messages=user("?"), stop_sequences=["boom"])
        with pytest.raises(anthropic.APIStatusError), anthropics.messages.stream(**asked) as events:
            list(events)
        assert stream.read().endswith(b"data: [DONE]\n\n")
    assert post(server.url, CHAT, HELLO)[0] == 200


def test_after_a_failure_of_the_device_the_next_request_has_a_new_batch(server, monkeypatch):
    expected = post(server.url, CHAT, HELLO)[2]["choices"]

    def broken(*work):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.engine.batch, "_advance", broken)
    assert post(server.url, CHAT, HELLO)[0] == 500
    assert get(server.url, "/health")[0] == 503
    assert post(server.url, CHAT, HELLO)[2]["choices"] == expected
    assert get(server.url, "/health")[2]["status"] == "ok"


def test_too_many_requests_are_told_when_to_come_back(scripted):
    scripted.engine.batch.scripts |= {"long": ENDLESS, "short": ["done"]}
    short = {"model": "tiny", "messages": user("short")}
    with streaming(scripted, {"model": "tiny", "messages": user("long"), "n": 4}):
        status, headers, answer = post(scripted.url, CHAT, short)
        assert status == 429 and 1 <= int(headers["retry-after"]) <= 60
        assert answer["error"]["code"] == "rate_limit_exceeded"
        client = anthropic.Anthropic(base_url=scripted.url, api_key="any", max_retries=0)
        with pytest.raises(anthropic.RateLimitError):
            client.messages.create(model="tiny", max_tokens=5, messages=user("short"))
    assert eventually(lambda: post(scripted.url, CHAT, short)[0] == 200)
    assert post(scripted.url, CHAT, short | {"n": 5})[0] == 400


def test_admission_counts_what_has_left(model):
    admission = Admission(Limits(sequences=3), rows=1)
    with admission.enter(2, time.monotonic):
        with pytest.raises(ApiError) as error, admission.enter(2, time.monotonic):
            pass
        assert error.value.status == 429 and admission.sequences == 2
    assert admission.sequences == 0


def test_an_answer_is_cut_after_its_time(model, scripted):
    engine = make_engine(*model, rows=1, seconds=0.3)
    engine.batch = scripted.engine.batch
    scripted.engine.batch.scripts |= {"": ENDLESS}
    with serving(engine) as served:
        answer = post(served.url, CHAT, {"model": "tiny", "messages": user("?")})[2]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert set(answer["choices"][0]["message"]["content"]) == {"a"}


def test_only_those_with_a_key_are_answered(model, scripted):
    engine = make_engine(*model, rows=1)
    engine.batch = scripted.engine.batch
    scripted.engine.batch.scripts |= {"": ["ok"]}
    asked = dict(model="tiny", messages=user("?"))
    with serving(engine, keys=["first", "sécond"]) as served:
        for key, allowed in (("first", True), ("", False), ("firs", False)):
            status, _, answer = post(served.url, CHAT, asked, {"authorization": f"Bearer {key}"})
            assert status == (200 if allowed else 401), answer
        client = anthropic.Anthropic(base_url=served.url, api_key="first", max_retries=0)
        assert client.messages.create(**asked, max_tokens=5).content[0].text == "ok"
        client = anthropic.Anthropic(base_url=served.url, auth_token="first", max_retries=0)
        assert client.messages.create(**asked, max_tokens=5).content[0].text == "ok"
        client = anthropic.Anthropic(base_url=served.url, api_key="other", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**asked, max_tokens=5)
        assert get(served.url, "/v1/models")[0] == 401
        assert get(served.url, "/health")[0] == 200


def test_what_was_said_and_what_people_thought_of_it_is_logged(scripted):
    scripted.engine.batch.scripts |= {"": ["fine"]}
    body = {"model": "tiny:pro", "messages": user("how?"), "user": "u", "n": 2}
    answer = post(scripted.url, CHAT, body, {"x-session-id": "s"})[2]
    first, second = scripted.journal.exchanges[-2:]
    assert first["id"] == answer["id"] and second["id"] == answer["id"] + ":1"
    assert (first["api"], first["mode"], first["user"], first["session"]) == (
        "openai",
        "pro",
        "u",
        "s",
    )
    assert first["messages"] == user("how?") and first["finish_reason"] == "stop"
    assert first["response"] == {"role": "assistant", "content": "fine"}
    assert first["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert first["completion_tokens"] == 5
    seen = len(scripted.journal.exchanges)
    post(scripted.url, CHAT, body | {"store": False})
    assert len(scripted.journal.exchanges) == seen
    rating = {"id": answer["id"], "rating": "down", "comment": "no", "reward": 0.25}
    assert post(scripted.url, "/v1/feedback", rating)[0] == 200
    assert scripted.journal.ratings[-1] == (answer["id"], "down", "no", 0.25)
    for bad in ({"rating": "up"}, {"id": "x", "rating": "maybe"}, {"id": "x"}, {"id": 3}):
        assert post(scripted.url, "/v1/feedback", bad)[0] == 400


def test_a_journal_that_fails_harms_no_request(scripted, monkeypatch):
    scripted.engine.batch.scripts |= {"": ["fine"]}

    def full(exchange):
        raise OSError("no space left on device")

    monkeypatch.setattr(scripted.journal, "record", full)
    assert post(scripted.url, CHAT, {"model": "tiny", "messages": user("?")})[0] == 200
    assert "mmrl_exchanges_lost_total 1.0" in get(scripted.url, "/metrics")[2]


def test_metrics_count_requests_and_tokens(server):
    def value(name: str) -> float:
        lines = get(server.url, "/metrics")[2].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ('mmrl_completion_tokens_total{mode="lightning"}', "mmrl_requests_total{path=")
    before = [value(name) for name in names]
    answer = post(server.url, CHAT, HELLO)[2]
    after = [value(name) for name in names]
    assert after[0] - before[0] == answer["usage"]["completion_tokens"]
    assert after[1] - before[1] >= 1
    assert value("mmrl_rows") == 32 and 0 < value("mmrl_row_occupancy") <= 1
