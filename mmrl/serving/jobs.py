"""One request at work: its sequences run in the batch, and their parts become an answer."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from absl import logging
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmrl.serving.ask import Part, Reply
from mmrl.serving.engine import Emit, Engine
from mmrl.serving.http import EventStream, until_disconnect
from mmrl.serving.limits import Admission, ApiError
from mmrl.serving.metrics import Metrics

PING_SECONDS = 15.0
FAILED = "the server failed, see its log"


@dataclass(frozen=True)
class Job:
    """What one request makes the model do, and how its answer is written.

    runs      a coroutine for each of C choices, which gives parts to its argument
    replies   [C], filled while they run
    events    of the stream: `begin()`, `part(choice, part)` and `end()` give JSON objects, of which
              `encode` makes text, as `error_json` of an error; `ping` and `last` are texts
    whole     the answer at once
    exchanges what a journal would keep, [] for nothing
    """

    mode: str
    prompt_tokens: int
    stream: bool
    runs: Sequence[Callable[[Emit], Awaitable[None]]]
    replies: Sequence[Reply]
    events: Any
    whole: Callable[[], dict[str, Any]]
    exchanges: Callable[[], list[dict[str, Any]]]


class Jobs:
    """Runs jobs within the limits, counts what they do, and logs it where there is a journal.

    `exchange` makes what `journal.record` takes of the fields of an `mmrl.conversations.Exchange`.
    """

    def __init__(self, engine: Engine, metrics: Metrics, journal: Any, exchange: Any):
        self._engine, self._metrics = engine, metrics
        self._journal, self._exchange = journal, exchange
        self._admission = Admission(engine.limits, engine.rows)
        self.log_thread = ThreadPoolExecutor(1, "journal")

    async def answer(self, request: Request, job: Job) -> Response:
        stack = contextlib.ExitStack()
        stack.enter_context(self._admission.enter(len(job.runs), time.monotonic))
        stack.callback(self._count, job)
        if job.stream:
            events = self._events(job, time.monotonic())
            return EventStream(events, stack.close, self._engine.limits.seconds)
        with stack:
            begun = time.monotonic()
            work = _all(
                run(functools.partial(self._add, job, begun, i)) for i, run in enumerate(job.runs)
            )
            try:
                await until_disconnect(request.receive, work)
            finally:
                logged = self._log(job)
            await logged
            return JSONResponse(job.whole())

    async def _events(self, job: Job, begun: float) -> AsyncGenerator[str, None]:
        """The stream: whatever happens in it ends it with an event that says so."""
        events = job.events
        parts: asyncio.Queue[tuple[int, Part] | None] = asyncio.Queue()

        def emit(choice: int, part: Part) -> None:
            self._add(job, begun, choice, part)
            parts.put_nowait((choice, part))

        work = asyncio.ensure_future(
            _all(run(functools.partial(emit, i)) for i, run in enumerate(job.runs))
        )
        work.add_done_callback(lambda _: parts.put_nowait(None))
        logged = None
        try:
            yield "".join(map(events.encode, events.begin()))
            while True:
                try:
                    item = await asyncio.wait_for(parts.get(), PING_SECONDS)
                except TimeoutError:
                    yield events.ping
                    continue
                if item is None:
                    break
                if new := events.part(*item):
                    yield "".join(map(events.encode, new))
            work.result()
            logged = self._log(job)
            await logged
            yield "".join(map(events.encode, events.end())) + events.last
        except ApiError as error:
            yield events.encode(events.error_json(error))
        except Exception:
            logging.exception("A stream failed.")
            yield events.encode(events.error_json(ApiError(500, FAILED)))
        finally:
            work.cancel()
            if logged is None:
                self._log(job)

    def _add(self, job: Job, begun: float, choice: int, part: Part) -> None:
        if part.tokens and not any(reply.tokens for reply in job.replies):
            self._metrics.first_token.labels(job.mode).observe(time.monotonic() - begun)
        self._metrics.malformed.inc(part.malformed)
        job.replies[choice].add(part)

    def _count(self, job: Job) -> None:
        self._metrics.prompt_tokens.labels(job.mode).inc(job.prompt_tokens)
        tokens = sum(reply.tokens for reply in job.replies)
        self._metrics.completion_tokens.labels(job.mode).inc(tokens)

    def _log(self, job: Job) -> asyncio.Future[None]:
        """Writes the exchanges on a thread of its own; what fails there harms no request."""

        def write() -> None:
            if self._journal is None:
                return
            try:
                for exchange in job.exchanges():
                    self._journal.record(self._exchange(**exchange))
            except Exception:
                self._metrics.exchanges_lost.inc()
                logging.exception("An exchange was not logged.")

        return asyncio.get_running_loop().run_in_executor(self.log_thread, write)


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Runs all; where one fails or this is cancelled, the others end too."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
