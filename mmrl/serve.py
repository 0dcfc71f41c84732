"""Serves a model to clients of OpenAI and Anthropic.

    python -m mmrl.serve --checkpoint=runs/quickstart --port=8000
    curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "quickstart", "messages": [{"role": "user", "content": "Hello"}]}'

NAME:lightning and NAME:pro ask for a mode. SIGTERM and Ctrl-C finish what has begun and stop.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from mmrl import config as configs
from mmrl import generation_flags as generation
from mmrl.errors import UserError, user_mistakes
from mmrl.models import DecoderConfig
from mmrl.rollout.memory import cache_bytes, device_memory
from mmrl.rollout.modes import MODES, mode_of

_PORT = flags.DEFINE_integer("port", 8000, "0 takes a free one and says which.", 0, 65535)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 is all of them.")
_NAME = flags.DEFINE_string("name", None, "The model's name for clients, by default of its path.")
_MODE = flags.DEFINE_enum("mode", "lightning", sorted(MODES), "Of requests that name none.")
_ROWS = flags.DEFINE_integer("rows", None, "Sequences that decode together.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", None, "Tokens of a sequence.", lower_bound=2)
_KEYS = flags.DEFINE_string(
    "api_keys_file", None, "A file with a key a line; without it MMRL_API_KEYS, comma-separated."
)
_LOG_DIR = flags.DEFINE_string(  # absl.logging has a flag of this name, for files of its own
    "log_dir",
    None,
    "Log conversations here; off by default. Ask those whose words they are.",
    allow_override=True,
)
_MAX_SEQUENCES = flags.DEFINE_integer("max_sequences", 256, "That run or wait before a 429.", 1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "The most of a response.", 1)
_MAX_BODY = flags.DEFINE_integer("max_body_bytes", 8 * 2**20, "The most of a request.", 1)
_SECONDS = flags.DEFINE_float("request_seconds", 600.0, "After which an answer is cut.", 1.0)
_DRAIN = flags.DEFINE_integer("drain_seconds", 60, "To finish what has begun at a SIGTERM.", 0)
flags.adopt_module_key_flags(generation)

ROWS, CONTEXT = 32, 8192  # unless the memory or the model has less
CACHE_SHARE = 0.3  # of the memory of a device


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: use --checkpoint=PATH")
    try:
        import uvicorn

        from mmrl.serving.app import make_app
        from mmrl.serving.engine import Engine
        from mmrl.serving.limits import Limits
    except ImportError as error:
        raise UserError(f"mmrl.serve needs {error.name}: pip install 'mmrl[serve]'") from error
    with user_mistakes():
        limits = Limits(
            body_bytes=_MAX_BODY.value,
            new_tokens=_MAX_TOKENS.value,
            sequences=_MAX_SEQUENCES.value,
            seconds=_SECONDS.value,
        )
    path, keys, listening = Path(generation.CHECKPOINT.value), _keys(), _listen()
    journal, exchange = _journal()
    with generation.loaded_model() as (model, tokenizer):
        modes = {name: mode_of(path, name) for name in MODES}
        modes = {
            name: dataclasses.replace(mode, sampling=generation.sampling_from(mode.sampling))
            for name, mode in modes.items()
        }
        context = _CONTEXT.value or min(model.config.context_length or CONTEXT, CONTEXT)
        engine = Engine(
            _NAME.value or path.resolve().name.removesuffix(".gguf"),
            model,
            tokenizer,
            modes,
            default_mode=_MODE.value,
            rows=_rows(model.config, context),
            context=context,
            limits=limits,
            system=generation.SYSTEM.value,
            raw=generation.RAW.value,
            seed=generation.SEED.value,
        )
        app = make_app(engine, keys=keys, journal=journal, exchange=exchange)
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_DRAIN.value, lifespan="off"
        )

        async def serve() -> None:
            print(f"compiling for {engine.rows} rows of {context} tokens …", flush=True)
            await engine.warm_up()
            listening.listen()  # so that whoever reads the address can connect
            print(_greeting(engine, listening, bool(keys)), flush=True)
            with _signals_end_with_the_server():
                await uvicorn.Server(config).serve(sockets=[listening])

        asyncio.run(serve())
    print("stopped", flush=True)


def _keys() -> list[str]:
    """The keys that clients must have one of, [] for none."""
    if _KEYS.value is None:
        keys = os.environ.get("MMRL_API_KEYS", "").split(",")
        return [key.strip() for key in keys if key.strip()]
    with user_mistakes():
        lines = Path(_KEYS.value).read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UserError(f"--api_keys_file={_KEYS.value} holds no key: write one a line")
    return keys


def _listen() -> socket.socket:
    """A socket at the address, which nobody can connect to before the server listens."""
    family = socket.AF_INET6 if ":" in _HOST.value else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # a peer that takes nothing for a minute is gone
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    try:
        listening.bind((_HOST.value, _PORT.value))
    except OSError as error:
        place = f"{_HOST.value}:{_PORT.value}"
        raise UserError(f"cannot listen on {place} ({error.strerror}): use --port=0") from error
    return listening


def _rows(config: DecoderConfig, context: int) -> int:
    """Rows whose cache has its share of the memory. Raises `UserError` if that holds none."""
    if _ROWS.value is not None:
        return _ROWS.value
    one, two = (cache_bytes(config, rows, 1, (context, 0)) for rows in (1, 2))
    budget = CACHE_SHARE * device_memory() * generation.TENSOR_PARALLEL.value
    rows = min(ROWS, 1 + int((budget - one) // (two - one)))
    if rows < 1:
        raise UserError(
            f"the cache of one sequence of {context} tokens has {one / 2**30:,.1f} GiB: lower "
            "--context, or set --rows"
        )
    return rows


def _journal():
    """(the journal of --log_dir, what it records), or nothing."""
    if _LOG_DIR.value is None:
        return None, dict
    from mmrl.conversations import Exchange, Journal

    return Journal(_LOG_DIR.value), Exchange


@contextlib.contextmanager
def _signals_end_with_the_server() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it is done; nobody needs that."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    earlier = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _greeting(engine, listening: socket.socket, keyed: bool) -> str:
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    modes = ", ".join(f"{engine.name}:{mode}" for mode in engine.modes)
    logged = f"in {_LOG_DIR.value}" if _LOG_DIR.value else "no"
    lines = [
        f"ready at http://{host}:{port} (OpenAI: /v1, Anthropic: /)",
        f"model {engine.name} in mode {engine.default_mode}; {modes}",
        f"{engine.rows} rows of {engine.context} tokens; chat template: "
        f"{'yes' if engine.template else 'no'}; API keys: {'yes' if keyed else 'no'}; "
        f"conversations are logged: {logged}",
    ]
    if not keyed and not host.startswith(("127.", "[::1]", "localhost")):
        lines.append("warning: anyone who reaches this address may use it: set --api_keys_file")
    return "\n".join(lines)


if __name__ == "__main__":
    configs.run(main)
