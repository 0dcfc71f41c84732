"""The endpoints: from a request to an `Ask`, to parts of replies, to JSON or events."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mmrl.serving import anthropic_reply, fields, openai_reply
from mmrl.serving.anthropic_request import parse_messages
from mmrl.serving.ask import Ask, Reply, new_id
from mmrl.serving.completions import (
    CompletionChunks,
    complete,
    completion_json,
    parse_completion,
)
from mmrl.serving.engine import Engine
from mmrl.serving.http import check_key, read_json
from mmrl.serving.jobs import FAILED, Job, Jobs
from mmrl.serving.limits import ApiError
from mmrl.serving.metrics import Metrics
from mmrl.serving.names import served_names
from mmrl.serving.openai_request import parse_chat
from mmrl.serving.prompts import check_characters

RATINGS = ("up", "down")
GONE = 499  # nginx's status for a client that did not wait, in metrics only


class Endpoints:
    """The handlers of `make_app`'s routes."""

    def __init__(self, engine: Engine, keys: Sequence[str], journal: Any, exchange: Any):
        self.engine, self.keys = engine, keys
        self.journal, self.metrics = journal, Metrics(engine)
        self._jobs = Jobs(engine, self.metrics, journal, exchange)
        self._started = int(time.time())

    async def chat(self, request: Request) -> Response:
        engine, body = self.engine, await self._body(request)
        ask = parse_chat(body, request.headers, engine)
        prompt = await engine.chat_prompt(ask)
        identity, size = new_id("chatcmpl"), len(prompt.tokens)
        replies = [Reply() for _ in range(ask.choices)]
        tokenizer = engine.tokenizer
        job = Job(
            mode=ask.mode,
            prompt_tokens=size,
            stream=ask.stream,
            runs=[functools.partial(engine.respond, ask, prompt, i) for i in range(ask.choices)],
            replies=replies,
            events=openai_reply.ChatChunks(ask, identity, tokenizer, size),
            whole=lambda: openai_reply.chat_completion(ask, identity, tokenizer, size, replies),
            exchanges=lambda: _exchanges("openai", ask, identity, size, replies),
        )
        return await self._jobs.answer(request, job)

    async def messages(self, request: Request) -> Response:
        engine, body = self.engine, await self._body(request)
        ask = parse_messages(body, request.headers, engine)
        prompt = await engine.chat_prompt(ask)
        identity, size, reply = new_id("msg"), len(prompt.tokens), Reply()
        job = Job(
            mode=ask.mode,
            prompt_tokens=size,
            stream=ask.stream,
            runs=[functools.partial(engine.respond, ask, prompt, 0)],
            replies=[reply],
            events=anthropic_reply.MessageEvents(ask, identity, size),
            whole=lambda: anthropic_reply.message_json(ask, identity, size, reply),
            exchanges=lambda: _exchanges("anthropic", ask, identity, size, [reply]),
        )
        return await self._jobs.answer(request, job)

    async def count_tokens(self, request: Request) -> Response:
        body = await self._body(request)
        ask = parse_messages(body, request.headers, self.engine, counting=True)
        prompt = await self.engine.chat_prompt(ask)
        return JSONResponse({"input_tokens": len(prompt.tokens)})

    async def completions(self, request: Request) -> Response:
        engine, body = self.engine, await self._body(request)
        asked = await parse_completion(body, request.headers, engine)
        identity, replies = new_id("cmpl"), [Reply() for _ in range(asked.sequences)]
        job = Job(
            mode=asked.mode,
            prompt_tokens=asked.prompt_tokens,
            stream=asked.stream,
            runs=[functools.partial(complete, engine, asked, i) for i in range(asked.sequences)],
            replies=replies,
            events=CompletionChunks(asked, identity, engine.tokenizer),
            whole=lambda: completion_json(asked, identity, engine.tokenizer, replies),
            exchanges=list,  # no conversation
        )
        return await self._jobs.answer(request, job)

    async def feedback(self, request: Request) -> Response:
        """What someone thinks of a response: "id", "rating" up or down, "comment", "reward"."""
        body = await self._body(request)
        identity, rating = fields.string(body, "id"), fields.string(body, "rating")
        comment, reward = (
            fields.string(body, "comment"),
            fields.number(body, "reward", 0, -1e9, 1e9),
        )
        if not identity or len(identity) > 200:
            raise fields.wrong("id", "the id of a response", identity)
        if rating not in (*RATINGS, None) or (rating is None and body.get("reward") is None):
            raise fields.wrong("rating", '"up" or "down"', rating)
        if self.journal is None:
            raise ApiError(404, "conversations are not logged here: the server needs --log_dir")
        number = None if body.get("reward") is None else reward
        write = functools.partial(self.journal.feedback, identity, rating, comment, number)
        await asyncio.get_running_loop().run_in_executor(self._jobs.log_thread, write)
        return JSONResponse({"id": identity, "recorded": True})

    async def models(self, request: Request) -> Response:
        """In one form for clients of both APIs."""
        entries = [self._model(name) for name in served_names(self.engine)]
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"], "has_more": False}
        return JSONResponse({"object": "list", "data": entries} | ends)

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in served_names(self.engine):
            raise ApiError(404, f"there is no model {name!r} here", "model", "model_not_found")
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started))
        openai = {"id": name, "object": "model", "created": self._started, "owned_by": "mmrl"}
        anthropic = {"type": "model", "display_name": name, "created_at": created}
        return openai | anthropic | {"max_model_len": self.engine.context}

    async def tokenize(self, request: Request) -> Response:
        """With the next two what lm-eval calls a remote tokenizer, in vLLM's form."""
        text = fields.string(await self._body(request), "prompt", "")
        check_characters(len(text), self.engine.limits.prompt_tokens)
        tokens = await self.engine.text_prompt(text) if text else []
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        tokens = (await self._body(request)).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(x, int) for x in tokens):
            raise fields.wrong("tokens", "a list of token ids", tokens)
        return JSONResponse({"prompt": self.engine.tokenizer.decode(tokens)})

    async def tokenizer_info(self, request: Request) -> Response:
        tokenizer, template = self.engine.tokenizer, self.engine.template
        ends = (
            token
            for token in tokenizer.special_tokens
            if tokenizer.encode(token, special=True) == [tokenizer.eos_id]
        )
        return JSONResponse(
            {
                "eos_token": next(ends, None),
                "bos_token": None,
                "pad_token": None,
                "chat_template": template.source if template else None,
            }
        )

    async def health(self, request: Request) -> Response:
        running, waiting = self.engine.batch.load
        failed = getattr(self.engine.batch, "failure", None) is not None
        status = {"status": "failed" if failed else "ok", "model": self.engine.name}
        counts = {"running": running, "waiting": waiting}
        return JSONResponse(status | counts, 503 if failed else 200)

    async def prometheus(self, request: Request) -> Response:
        text = prometheus_client.generate_latest(self.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def root(self, request: Request) -> Response:
        return PlainTextResponse(f"mmrl serves {self.engine.name}\n")

    async def _body(self, request: Request) -> dict[str, Any]:
        return await read_json(request, self.engine.limits)


def make_app(
    engine: Engine,
    *,
    keys: Sequence[str] = (),
    journal: Any = None,
    exchange: Callable[..., Any] = dict,
) -> Starlette:
    """The ASGI application. With `keys` every request under /v1 needs one of them.

    A `journal` gets `record(exchange(**fields))` after every response, the fields being those of
    `mmrl.conversations.Exchange`, and `feedback(id, rating, comment, reward)`.
    """
    endpoints = Endpoints(engine, keys, journal, exchange)
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", "/v1/chat/completions", endpoints.chat),
        ("POST", "/v1/completions", endpoints.completions),
        ("POST", "/v1/messages", endpoints.messages),
        ("POST", "/v1/messages/count_tokens", endpoints.count_tokens),
        ("POST", "/v1/feedback", endpoints.feedback),
        ("GET", "/v1/models", endpoints.models),
        ("GET", "/v1/models/{name:path}", endpoints.model),
        ("POST", "/tokenize", endpoints.tokenize),
        ("POST", "/detokenize", endpoints.detokenize),
        ("GET", "/tokenizer_info", endpoints.tokenizer_info),
        ("GET", "/health", endpoints.health),
        ("GET", "/metrics", endpoints.prometheus),
        ("GET", "/", endpoints.root),
    ]
    open_to_all = ("/health", "/metrics", "/")
    routes = [
        Route(path, _guarded(endpoints, path, handle, path in open_to_all), methods=[method])
        for method, path, handle in table
    ]
    handlers: Mapping[Any, Any] = {HTTPException: _http_error, Exception: _failure}
    return Starlette(routes=routes, exception_handlers=handlers)


def _guarded(endpoints: Endpoints, path: str, handle, open_to_all: bool):
    """`handle` with its key checked, its mistakes as JSON, and itself in the metrics."""

    async def run(request: Request) -> Response:
        begun, status = time.monotonic(), 500
        try:
            if not open_to_all:
                check_key(request.headers, endpoints.keys)
            response = await handle(request)
            status = response.status_code
        except ApiError as error:
            response, status = _error_response(error, path), error.status
        except ClientDisconnect:
            response, status = Response(status_code=GONE), GONE
        finally:
            endpoints.metrics.requests.labels(path, status).inc()
            endpoints.metrics.request_seconds.labels(path).observe(time.monotonic() - begun)
        return response

    return run


def _error_response(error: ApiError, path: str) -> Response:
    identity = new_id("req")
    headers = {"request-id": identity, "x-request-id": identity}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if path.startswith("/v1/messages"):
        content = anthropic_reply.error_json(error, identity)
    else:
        content = openai_reply.error_json(error)
    return JSONResponse(content, error.status, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    return _error_response(ApiError(error.status_code, f"{path}: {error.detail}"), path)


async def _failure(request: Request, error: Exception) -> Response:
    return _error_response(ApiError(500, FAILED), request.url.path)


def _exchanges(
    api: str, ask: Ask, identity: str, prompt_tokens: int, replies: Sequence[Reply]
) -> list[dict[str, Any]]:
    """The fields of an `Exchange` for each reply; the first has the response's own id."""
    if not ask.logged:
        return []
    return [
        {
            "id": f"{identity}:{i}" if i else identity,
            "time": time.time(),
            "api": api,
            "mode": ask.mode,
            "messages": ask.messages,
            "tools": ask.tools,
            "response": openai_reply.assistant_message(reply),
            "finish_reason": reply.finish,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": reply.tokens,
            "session": ask.session,
            "user": ask.user,
            "reward": None,
        }
        for i, reply in enumerate(replies)
    ]
