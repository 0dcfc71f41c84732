"""Continuous batching whose draws depend on no clock, and which several processes can share.

Rounding depends on which rows are read together. Here nothing is read or drawn before every session
has asked for something or has closed, and all are served in the order of their numbers: what is
drawn is the same however long each environment takes. It is also the moment at which the processes
of a job tell each other what their sessions ask for, and then run the same programs.
"""

import asyncio
import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmrl.processes import exchange
from mmrl.rollout.continuous import ContinuousBatch, Request, Session, Turn
from mmrl.rollout.sampling import SamplingConfig

READ_SIZES = (1, 8, 32)  # rows that are read together


class LockstepBatch(ContinuousBatch):
    """As `ContinuousBatch`, but a step waits for the slowest session.

    Every process opens all sessions in the same order, uses its `own` alone, and waits until the
    batch is `finished`. `best` and `on_tokens` are not for it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sessions: dict[int, Session] = {}
        self._own: dict[int, Request | None] = {}  # what each own session asked for last
        # Number, tokens (None closes) and their limit (negative: forget what was before).
        self._asked: list[tuple[int, list[int] | None, int]] = []
        self._changed = asyncio.Event()

    def open(
        self, key: jax.Array | np.ndarray, sampling: SamplingConfig, *, own: bool = True
    ) -> Session:
        """See `ContinuousBatch.open`; a session that is not `own` is used by another process."""
        session = super().open(key, sampling)
        self._sessions[session.number] = session
        if own:
            self._own[session.number] = None
        return session

    def restart(self, session: Session) -> None:
        """See `Session.restart`."""
        session.forget()
        self._asked.append((session.number, [], -1))

    def release(self, session: Session) -> None:
        """See `Session.close`."""
        if session.number in self._own:
            del self._own[session.number]
            self._asked.append((session.number, None, 0))
            self._changed.set()
            self._start()

    async def _submit(self, request: Request, tokens: Sequence[int]) -> Turn:
        if request.best or request.on_tokens:
            raise ValueError("a LockstepBatch takes neither best nor on_tokens")
        number = request.session.number
        before = self._own[number]
        if before is not None and not before.done.done():
            raise ValueError("a session asks for one thing at a time")
        self._own[number] = request
        self._asked.append((number, list(tokens), request.limit))
        self._changed.set()
        self._start()
        # Where the session gives up, its request goes on until all processes learn that it closed.
        return await asyncio.shield(request.done)

    def _unanswered(self) -> list[Request]:
        return [*super()._unanswered(), *filter(None, self._own.values())]

    async def _ticks(self) -> None:
        while self._sessions:
            while any(request is None or request.done.done() for request in self._own.values()):
                self._changed.clear()
                await self._changed.wait()
            self._serve()
            beginning = [request for request in self._waiting if not request.limit]
            running = self._admit()
            if any(request.done.done() for request in beginning):
                continue  # these have a row and ask for more now
            if running:
                await self._tick()

    async def _tick(self) -> None:
        """Reads all that is new before anything is drawn: nobody else could go on meanwhile."""
        while reading := self._reading(READ_SIZES[-1]):
            await asyncio.to_thread(self._advance, reading, [])
            self._note_read(reading)
        await super()._tick()

    def _padded(self, rows: int) -> int:
        return next(size for size in READ_SIZES if size >= rows)

    def _serve(self) -> None:
        """Does what the sessions of all processes asked for, in the order of their numbers."""
        asked, self._asked = self._asked, []
        everything = [one for part in exchange(asked) for one in part]
        for number, tokens, limit in sorted(everything, key=lambda one: one[0]):
            session = self._sessions[number]
            if tokens is None:
                self._close(session)
                continue
            if limit < 0:
                session.forget()
                continue
            request = self._own.get(number)
            if request is None:
                request = Request(session, limit, 0, None, self._future())
            self._queue(request, tokens)
        self._free.sort(reverse=True)
        self._running.sort(key=_number)
        self._waiting = collections.deque(sorted(self._waiting, key=_number))

    def _close(self, session: Session) -> None:
        del self._sessions[session.number]
        for request in [*self._running, *self._waiting]:
            if request.session is session:
                request.done.cancel()
        self._waiting = collections.deque(r for r in self._waiting if not r.done.done())
        if session.row is not None:
            self._free.append(session.row)
            session.row = None


def _number(request: Request) -> int:
    return request.session.number
