"""HTTP around the endpoints: bodies, keys, clients that go away, and server-sent events."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mmrl.serving.fields import parse_body
from mmrl.serving.limits import ApiError, Limits

T = TypeVar("T")

DISCARDED = (
    8  # times the limit of a body that is read and thrown away, so that the client hears 413
)
GRACE_SECONDS = 30.0  # for a client to read an answer that has ended


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object.

    Raises `ApiError` 415 for another content type (which also keeps pages of other sites away from
    a server on this machine), 413 for too many bytes, 408 for a client that is too slow, 400 for
    anything else than a JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type must be application/json, got {kind!r}")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.body_bytes:
                    body += chunk
                elif size > DISCARDED * limits.body_bytes:
                    break
    except TimeoutError:
        seconds = limits.body_seconds
        raise ApiError(408, f"the request did not arrive within {seconds:g} seconds") from None
    if size > limits.body_bytes:
        raise ApiError(413, f"the body has more than {limits.body_bytes} bytes")
    return parse_body(bytes(body))


def check_key(headers: Mapping[str, str], keys: Sequence[str]) -> None:
    """Raises `ApiError` 401 unless the request has one of the keys, if there are any."""
    if not keys:
        return
    given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    # Every key is compared, so that the time says nothing.
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    if not any(matches):
        message = "the API key is missing or wrong: send it as a bearer token or as x-api-key"
        raise ApiError(401, message, code="invalid_api_key")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client goes away: `ClientDisconnect`."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events. `close` is called whatever becomes of them, even before the first.

    A client that does not read is cut off `GRACE_SECONDS` after `seconds`.
    """

    def __init__(
        self, events: AsyncGenerator[str, None], close: Callable[[], None], seconds: float
    ):
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._close, self._seconds = events, close, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with anyio.move_on_after(self._seconds + GRACE_SECONDS):
                await super().__call__(scope, receive, send)
        finally:
            self._close()

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


def data_line(event: dict[str, Any]) -> str:
    """An event as OpenAI sends them."""
    return f"data: {json.dumps(event, allow_nan=False)}\n\n"


def event_lines(event: dict[str, Any]) -> str:
    """An event as Anthropic sends them, with its type before it."""
    return f"event: {event['type']}\n{data_line(event)}"
