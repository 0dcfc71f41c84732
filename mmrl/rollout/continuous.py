"""Continuous batching: many token sequences share the rows of one cache, each at its own pace.

    session = batch.open(key, sampling)           a sequence that only grows
    turn = await session.generate(tokens)         reads the new tokens alone, draws a response
    turn = await session.generate(more_tokens)    what a tool returned, or the user's next words
    session.close()                               its row is free for the next

While one session waits for a tool, others decode. A tick of the loop reads one piece of what is new
and then draws a few tokens for every row that has read all of its own. All bookkeeping happens on
the event loop's thread; a second thread waits for the device.
"""

import asyncio
import collections
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np
from flax import nnx

from mmrl.errors import UserError
from mmrl.models import Decoder
from mmrl.processes import everywhere
from mmrl.rollout.rows import (
    RowInputs,
    RowSettings,
    decode_rows,
    empty_rows,
    loop_weights,
    read_rows,
)
from mmrl.rollout.sampling import SamplingConfig, certain_streak, support_size
from mmrl.rollout.streaming import LARGEST_PIECE, SMALLEST_PIECE
from mmrl.sharding import Layout

TurnEnding = Literal["stop", "length", "context", "repetition", "cancelled"]
STOP_IDS = 8  # a row's stop ids, padded to a multiple of this
NEVER = 2**31 - 1
READ_ROWS = 8  # at most so many rows read together, so that a long prompt does not hold up others


@dataclass
class Turn:
    """What one `generate` drew: T token ids, the stop token with them, and how it ended.

    logprobs        [T] of the distributions that the tokens were drawn from
    support         [T, K] ids that top-k and top-p left, -1 padded; None where nothing truncates
    model_logprobs, best    where asked for: of the untruncated model at temperature 1, the drawn
                    token's log-probability and the most probable ids with theirs, at each step
    ending          "stop" at a stop id, "length" at the limit of tokens, "context" where the row is
                    full, "repetition" by `SamplingConfig.repetition_stop`, "cancelled" where the
                    reader of the tokens had enough
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: np.ndarray | None = None
    model_logprobs: list[float] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)
    ending: TurnEnding | None = None


@dataclass
class Session:
    """One growing sequence, the batch's `number`th.

    `tokens` is all that was given and drawn; the last is not read yet.
    """

    batch: "ContinuousBatch"
    number: int
    key_data: np.ndarray
    sampling: SamplingConfig
    tokens: list[int] = field(default_factory=list)
    read: int = 0
    drawn: int = 0
    row: int | None = None
    fresh: bool = True  # its row holds what was there before

    async def begin(self) -> None:
        """Waits for a row, for what is to start only then; else the first `generate` does."""
        await self.batch.begin(self)

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int | None = None,
        best: int = 0,
        on_tokens: Callable[[Turn, int], bool] | None = None,
    ) -> Turn:
        """Appends `tokens` and draws a response, which the session's tokens then hold as well.

        At most `max_new_tokens`, by default those of the sampling settings. `on_tokens(turn, n)` is
        called on the event loop's thread whenever n new tokens are in `turn`; returning False ends
        the turn. After the coroutine was cancelled the session can only be closed. Raises
        `UserError` for a sequence that leaves no room in the context, or nothing to read.
        """
        return await self.batch.generate(
            self, tokens, max_new_tokens or self.sampling.max_new_tokens, best, on_tokens
        )

    def restart(self) -> None:
        """Forgets all tokens, for a sequence that does not go on from them; keeps its row."""
        self.batch.restart(self)

    def forget(self) -> None:
        """Its row begins anew with what is read next."""
        self.tokens, self.read, self.fresh = [], 0, True

    def close(self) -> None:
        """Gives the row back; the session is over."""
        self.batch.release(self)


@dataclass(eq=False)
class Request:
    """What a session waits for."""

    session: Session
    limit: int  # of tokens; 0 asks for a row only
    best: int
    on_tokens: Callable[[Turn, int], bool] | None
    done: asyncio.Future
    row: int = -1  # the session's, which may be closed at any time
    turn: Turn = field(default_factory=Turn)
    supports: list[np.ndarray] = field(default_factory=list)
    streak: int = 0  # see `certain_streak`; a turn begins anew

    @property
    def unread(self) -> int:
        """Tokens to read before the next can be drawn, which reads the last one itself."""
        return len(self.session.tokens) - 1 - self.session.read

    @property
    def reads(self) -> bool:
        return self.session.fresh or self.unread > 0


class ContinuousBatch:
    """`rows` sequences of at most `context` tokens decode together; more wait for a free row.

    `steps` tokens are drawn at most before new work is looked at. `occupancy` is the share of
    row-steps of decoding that drew a token.
    """

    def __init__(
        self,
        model: Decoder,
        rows: int,
        context: int,
        *,
        steps: int = 16,
        layout: Layout = "train",
    ):
        self.rows, self.context, self.steps, self._layout = rows, context, steps, layout
        self._graphdef, self._params = nnx.split(model)
        self._mesh = jax.sharding.get_mesh()
        self._vocabulary = model.config.vocab_size
        self._layers = loop_weights(self._graphdef, self._params, layout)
        self._cache = empty_rows(model.config, rows, context, layout)
        self._free = list(range(rows))[::-1]
        self._waiting: collections.deque[Request] = collections.deque()
        self._running: list[Request] = []
        self._driver: asyncio.Task | None = None
        self.failure: Exception | None = None
        self._opened = self._row_steps = self._drawn_steps = 0

    @property
    def occupancy(self) -> float:
        return self._drawn_steps / max(self._row_steps, 1)

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait for a row."""
        return len(self._running), len(self._waiting)

    def open(self, key: jax.Array | np.ndarray, sampling: SamplingConfig) -> Session:
        """A new sequence, whose random numbers `key` fixes whatever runs beside it.

        A numpy array is the data of a key.
        """
        data = key if isinstance(key, np.ndarray) else np.asarray(jax.random.key_data(key))
        self._opened += 1
        return Session(self, self._opened - 1, data, sampling)

    def restart(self, session: Session) -> None:
        """See `Session.restart`."""
        session.forget()

    def release(self, session: Session) -> None:
        """See `Session.close`."""
        if session.row is not None:
            self._free.append(session.row)
            session.row = None
            self._start()

    def _start(self) -> None:
        # One that was cancelled ended with its event loop.
        if self._driver is None or (self._driver.done() and not self._driver.cancelled()):
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def finished(self) -> None:
        """Waits until nothing runs. Raises what made the batch fail."""
        self._start()
        assert self._driver is not None
        await self._driver
        if self.failure is not None:
            raise self.failure

    async def begin(self, session: Session) -> None:
        """See `Session.begin`."""
        if session.row is None:
            await self._submit(Request(session, 0, 0, None, self._future()), ())

    async def generate(
        self,
        session: Session,
        tokens: Sequence[int],
        limit: int,
        best: int,
        on_tokens: Callable[[Turn, int], bool] | None,
    ) -> Turn:
        """See `Session.generate`."""
        length = len(session.tokens) + len(tokens)
        if not length or length >= self.context:
            raise UserError(
                f"the sequence has {length} tokens and needs 1 to {self.context - 1}: the context "
                f"holds {self.context}"
            )
        return await self._submit(Request(session, limit, best, on_tokens, self._future()), tokens)

    def _future(self) -> asyncio.Future:
        if self.failure is not None:
            raise RuntimeError("continuous batching has failed before") from self.failure
        return asyncio.get_running_loop().create_future()

    async def _submit(self, request: Request, tokens: Sequence[int]) -> Turn:
        self._queue(request, tokens)
        self._start()
        try:
            return await request.done
        finally:
            with contextlib.suppress(ValueError):  # cancelled before it had a row
                self._waiting.remove(request)

    def _queue(self, request: Request, tokens: Sequence[int]) -> None:
        request.session.tokens.extend(tokens)
        if request.session.row is None:
            self._waiting.append(request)
        else:
            request.row = request.session.row
            self._running.append(request)

    async def _drive(self) -> None:
        """Whatever fails reaches everybody who waits."""
        try:
            await self._ticks()
        except Exception as error:
            self.failure = error
            for request in self._unanswered():
                if not request.done.done():
                    request.done.set_exception(error)
            self._running.clear()
            self._waiting.clear()

    def _unanswered(self) -> list[Request]:
        return [*self._running, *self._waiting]

    async def _ticks(self) -> None:
        """Until nothing is left to do."""
        while self._admit():
            await self._tick()

    def _admit(self) -> bool:
        """Drops what has ended and gives the free rows away; False if nothing runs."""
        self._running = [request for request in self._running if not request.done.done()]
        while self._waiting and self._free:
            request = self._waiting.popleft()
            request.row = request.session.row = self._free.pop()
            if request.limit:
                self._running.append(request)
            else:
                request.done.set_result(request.turn)
        return bool(self._running)

    async def _tick(self) -> None:
        reading = self._reading()
        decoding = [request for request in self._running if not request.reads]
        outputs = await asyncio.to_thread(self._advance, reading, decoding)
        self._note_read(reading)
        if outputs is not None:
            self._deliver(decoding, outputs)

    def _note_read(self, reading: list[tuple[Request, list[int]]]) -> None:
        for request, piece in reading:
            request.session.read += len(piece)
            request.session.fresh = False

    def _reading(self, rows: int = READ_ROWS) -> list[tuple[Request, list[int]]]:
        """The next pieces to read, those of the requests that came first."""
        unread = [request for request in self._running if request.reads][:rows]
        return [
            (r, r.session.tokens[r.session.read : r.session.read + min(r.unread, LARGEST_PIECE)])
            for r in unread
        ]

    def _advance(self, reading, decoding: list[Request]) -> dict[str, np.ndarray] | None:
        """One program of each kind, on the second thread; returns what was drawn."""
        with jax.set_mesh(self._mesh) if self._mesh.size else contextlib.nullcontext():
            if reading:
                self._cache = self._read(reading)
            if not decoding:
                return None
            # A finished row makes room at once if somebody waits for it.
            running = len(decoding) if self._waiting else 1
            inputs, settings = self._inputs(decoding)
            self._cache, outputs = decode_rows(
                self._graphdef,
                self._params,
                self._layers,
                self._cache,
                inputs,
                np.int32(running),
                settings,
                self._layout,
            )
            return everywhere(outputs)

    def _padded(self, rows: int) -> int:
        """Rows of the program that reads so many, of few different sizes."""
        return 1 << (rows - 1).bit_length()

    def _size(self, rows: int, tokens: int) -> tuple[int, int]:
        """Rows and width of the program that reads so many tokens of so many."""
        return self._padded(rows), max(SMALLEST_PIECE, 1 << (tokens - 1).bit_length())

    def _read(self, reading):
        count, width = self._size(len(reading), max(len(piece) for _, piece in reading))
        tokens = np.zeros((count, width), np.int32)
        rows, lengths = np.full(count, self.rows, np.int32), np.zeros(count, np.int32)
        begins = np.zeros(count, bool)
        for i, (request, piece) in enumerate(reading):
            tokens[i, : len(piece)] = piece
            rows[i], lengths[i] = request.row, len(piece)
            begins[i] = request.session.fresh
        return read_rows(
            self._graphdef, self._params, self._cache, rows, begins, tokens, lengths, self._layout
        )

    def _inputs(self, decoding: list[Request]) -> tuple[RowInputs, RowSettings]:
        sessions = [request.session for request in decoding]
        most = max(len(session.sampling.stop_ids) for session in sessions)
        shape = (self.rows, max(-(-most // STOP_IDS), 1) * STOP_IDS)
        inputs: dict[str, np.ndarray] = dict(
            token=np.zeros(self.rows, np.int32),
            left=np.zeros(self.rows, np.int32),
            drawn=np.zeros(self.rows, np.int32),
            key_data=np.zeros((self.rows, *sessions[0].key_data.shape), np.uint32),
            temperature=np.ones(self.rows, np.float32),
            top_p=np.ones(self.rows, np.float32),
            top_k=np.zeros(self.rows, np.int32),
            nucleus_size=np.ones(self.rows, np.int32),
            stop_ids=np.full(shape, -1, np.int32),
            streak=np.zeros(self.rows, np.int32),
            streak_limit=np.full(self.rows, NEVER, np.int32),
            streak_logprob=np.zeros(self.rows, np.float32),
        )
        for request, session in zip(decoding, sessions, strict=True):
            row, sampling = request.row, session.sampling
            room = self.context - len(session.tokens)
            inputs["token"][row] = session.tokens[-1]
            inputs["left"][row] = min(request.limit - len(request.turn.tokens), room)
            inputs["drawn"][row] = session.drawn
            inputs["key_data"][row] = session.key_data
            inputs["temperature"][row] = sampling.temperature
            inputs["top_p"][row], inputs["top_k"][row] = sampling.top_p, sampling.top_k
            inputs["nucleus_size"][row] = sampling.nucleus_size
            inputs["stop_ids"][row, : len(sampling.stop_ids)] = sampling.stop_ids
            if sampling.repetition_stop is not None:
                inputs["streak"][row] = request.streak
                inputs["streak_limit"][row] = sampling.repetition_stop.tokens
                inputs["streak_logprob"][row] = sampling.repetition_stop.logprob
        size = max(support_size(session.sampling) for session in sessions)
        return RowInputs(**inputs), self._settings(size, max(r.best for r in decoding))

    def _settings(self, support: int, best: int) -> RowSettings:
        """Of the program that keeps and lists so many ids, of few sizes, each compiled once."""
        if support:
            support = min(1 << (support - 1).bit_length(), self._vocabulary)
        return RowSettings(self.steps, support, min(best, self._vocabulary))

    def _deliver(self, decoding: list[Request], outputs: dict[str, np.ndarray]) -> None:
        mask = outputs["mask"]
        steps = int(mask.any(axis=1).sum())
        self._row_steps += steps * self.rows
        self._drawn_steps += int(mask.sum())
        for request in decoding:
            if request.done.done():
                continue
            session, turn, row = request.session, request.turn, request.row
            count = int(mask[:, row].sum())
            new = {name: x[:count, row] for name, x in outputs.items()}
            tokens = new["tokens"].tolist()
            session.read = len(session.tokens) - 1 + count
            session.tokens += tokens
            session.drawn += count
            turn.tokens += tokens
            turn.logprobs += new["logprobs"].tolist()
            if session.sampling.repetition_stop is not None:
                for logprob in new["logprobs"]:
                    bound = session.sampling.repetition_stop.logprob
                    request.streak = int(certain_streak(request.streak, logprob, bound))
            if session.sampling.truncates:
                size = support_size(session.sampling)
                request.supports.append(new["support"][:, :size])
            if request.best:
                turn.model_logprobs += new["model_logprobs"].tolist()
                ids, values = (new[f"best_{x}"][:, : request.best] for x in ("ids", "logprobs"))
                turn.best += [
                    list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist())
                ]
            self._finish(request, count)

    def _finish(self, request: Request, count: int) -> None:
        """Ends the request's turn where it has ended."""
        session, turn = request.session, request.turn
        repetition = session.sampling.repetition_stop
        if turn.tokens[-1] in session.sampling.stop_ids:
            turn.ending = "stop"
        elif repetition is not None and request.streak >= repetition.tokens:
            turn.ending = "repetition"
        elif len(turn.tokens) >= request.limit:
            turn.ending = "length"
        elif len(session.tokens) >= self.context:
            turn.ending = "context"
        try:
            more = request.on_tokens is None or request.on_tokens(turn, count)
        except Exception as error:  # of whoever reads this one: nobody else's
            request.done.set_exception(error)
            return
        if turn.ending is None and not more:
            turn.ending = "cancelled"
        if turn.ending is not None:
            if request.supports:
                turn.support = np.concatenate(request.supports)
            request.done.set_result(turn)
