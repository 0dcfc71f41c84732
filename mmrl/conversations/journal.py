"""The journal of a served model: exchanges and what people thought of them, a JSON object a line.

    journal/2026-11-27.jsonl      the days are UTC's; readable by its owner alone
    {"kind": "exchange", "id": …, "messages": […], "response": {…}, …}      the fields of `Exchange`
    {"kind": "feedback", "exchange": …, "time": …, "rating": "down", "comment": …, "reward": …}

Whoever keeps a journal has asked the people whose words it holds: it is off unless a folder is
named. Lines are redacted before they reach the disk (`mmrl.conversations.redact`).
"""

import dataclasses
import datetime
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from mmrl.conversations.redact import redact
from mmrl.errors import UserError

RATINGS = ("up", "down")


@dataclass(frozen=True)
class Exchange:
    """One request and its response, as OpenAI's chat completions have them.

    id             of the response, which feedback names
    time           seconds since 1970 when the response ended
    api            the endpoint that was asked, such as "openai" or "anthropic"
    mode           the sampling mode, "lightning" or "pro"
    messages       {"role", "content", "tool_calls", "tool_call_id"}, the whole conversation before
    tools          as OpenAI describes functions; None without
    response       the assistant's message
    finish_reason  "stop", "length", "tool_calls" or what the endpoint said
    session, user  as the client names them
    reward         of a verifier that ran at once
    """

    id: str
    time: float
    api: str
    mode: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    response: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    session: str | None = None
    user: str | None = None
    reward: float | None = None


class Journal:
    """Appends to a folder; several threads and processes may, each line is one write.

    Nothing here raises into a request: a line that cannot be written counts in `lost`, and the
    first one is logged. Raises `UserError` for a folder that cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.lost = 0
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the journal's folder {folder}: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UserError(f"the journal's folder {folder} must be writable")

    def record(self, exchange: Exchange) -> None:
        """Logs an exchange."""
        fields = {f.name: getattr(exchange, f.name) for f in dataclasses.fields(exchange)}
        self._append({"kind": "exchange"} | fields)

    def feedback(
        self,
        exchange_id: str,
        rating: str | None,
        comment: str | None = None,
        reward: float | None = None,
    ) -> None:
        """Logs what someone thought of an exchange: one of `RATINGS`, words, or a number."""
        entry = {"kind": "feedback", "exchange": exchange_id, "time": time.time()}
        self._append(entry | {"rating": rating, "comment": comment, "reward": reward})

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            # A lone surrogate, which UTF-8 has not, becomes its JSON escape.
            text = json.dumps(redact(entry), ensure_ascii=False, allow_nan=False)
            append_line(self._today(), text.encode("utf-8", "backslashreplace"))
        except Exception as error:  # whatever it is, the request goes on
            with self._lock:
                self.lost += 1
                first = self.lost == 1
            if first:
                logging.error("The journal %s loses lines, the first: %s", self.folder, error)

    def _today(self) -> Path:
        return self.folder / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.jsonl"


def append_line(path: Path, line: bytes) -> None:
    """Adds `line` and its end to a file, made for its owner alone, in one write.

    A write that O_APPEND makes is not mixed with others'. Where an earlier one was cut short, by a
    full disk, the next begins on a line of its own; where one is just being made, that may leave an
    empty line. Raises OSError if not all of it was written.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(file).st_size
        begun = size and os.pread(file, 1, size - 1) != b"\n"
        text = b"\n" * bool(begun) + line + b"\n"
        if os.write(file, text) < len(text):
            raise OSError(f"{path} took only a part of a line")
    finally:
        os.close(file)
