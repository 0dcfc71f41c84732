"""Servers of a tiny random model, and of one that says what a test has it say."""

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import uvicorn
from byte_checkpoint import make_checkpoint
from serving.serving_tools import ENDLESS

from mmrl.models import Decoder, load
from mmrl.rollout import SamplingConfig
from mmrl.rollout.continuous import Turn
from mmrl.rollout.modes import Mode
from mmrl.serving.app import make_app
from mmrl.serving.engine import Engine
from mmrl.serving.limits import Limits
from mmrl.text import PretrainedTokenizer

CONTEXT = 2048
MODES = {
    "lightning": Mode(SamplingConfig(1, 64, temperature=0.8), CONTEXT, False),
    "pro": Mode(SamplingConfig(1, 128), CONTEXT, True),
}
NAME = "tiny"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("serving") / NAME, template="chatml")


@pytest.fixture(scope="session")
def model(checkpoint) -> tuple[Decoder, PretrainedTokenizer]:
    return load(checkpoint)


@dataclasses.dataclass
class Served:
    """A server on a thread of this process."""

    url: str
    engine: Engine
    loop: asyncio.AbstractEventLoop
    journal: "RecordingJournal"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


class RecordingJournal:
    """Keeps what it is given."""

    def __init__(self):
        self.exchanges, self.ratings = [], []

    def record(self, exchange: dict) -> None:
        self.exchanges.append(exchange)

    def feedback(self, *entry) -> None:
        self.ratings.append(entry)


@contextlib.contextmanager
def serving(engine: Engine, **arguments) -> Iterator[Served]:
    listening = socket.create_server(("127.0.0.1", 0))
    # Connections inherit it: a client that does not read is noticed soon.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    journal = RecordingJournal()
    app = make_app(engine, journal=journal, **arguments)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    loops = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        port = listening.getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", engine, loops[0], journal)
    finally:
        server.should_exit = True
        thread.join()


def make_engine(model, tokenizer, *, rows: int = 32, **limits) -> Engine:
    return Engine(
        NAME,
        model,
        tokenizer,
        MODES,
        default_mode="lightning",
        rows=rows,
        context=CONTEXT,
        limits=Limits(**limits),
    )


@pytest.fixture(scope="session")
def server(model) -> Iterator[Served]:
    """The random model with continuous batching."""
    with serving(make_engine(*model, body_bytes=100_000, body_seconds=2.0)) as served:
        yield served


class ScriptedBatch:
    """Instead of a model: what stands in `scripts` for a word that the prompt holds.

    Of a script each text is a tick of the batch; the turn ends with the last. ENDLESS never ends.
    """

    occupancy, load = 0.0, (0, 0)

    def __init__(self, tokenizer: PretrainedTokenizer):
        self.tokenizer, self.scripts = tokenizer, {}
        self.prompts: list[str] = []
        self.closed = 0

    def open(self, key: jax.Array, sampling: SamplingConfig):
        return ScriptedSession(self, sampling)


class ScriptedSession:
    def __init__(self, batch: ScriptedBatch, sampling: SamplingConfig):
        self.batch, self.sampling = batch, sampling

    async def generate(self, tokens, *, best=0, on_tokens):
        backend = self.batch.tokenizer._files.backend
        prompt = backend.decode(tokens, skip_special_tokens=False)
        self.batch.prompts.append(prompt)
        script = next(text for word, text in self.batch.scripts.items() if word in prompt)
        turn = Turn()
        while script == ENDLESS:
            turn.tokens.append(self.batch.tokenizer.encode("a")[0])
            if not on_tokens(turn, 1):
                return turn
            await asyncio.sleep(0.002)
        ticks = [self.batch.tokenizer.encode(text) for text in script]
        ticks[-1].append(self.batch.tokenizer.eos_id)
        for i, tick in enumerate(ticks):
            turn.tokens += tick
            if i == len(ticks) - 1:
                turn.ending = "stop"
            if not on_tokens(turn, len(tick)):
                break
            await asyncio.sleep(0)
        return turn

    def close(self) -> None:
        self.batch.closed += 1


@pytest.fixture(scope="session")
def scripted_server(model) -> Iterator[Served]:
    engine = make_engine(*model, rows=1, sequences=4)
    engine.batch = ScriptedBatch(model[1])
    with serving(engine) as served:
        yield served


@pytest.fixture
def scripted(scripted_server) -> Iterator[Served]:
    """`scripted.engine.batch.scripts[word]` says what the model answers to `word`."""
    scripted_server.engine.batch.scripts.clear()
    scripted_server.engine.batch.prompts.clear()
    yield scripted_server
