"""What a request may ask for, and the errors of those that ask for more."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass


class ApiError(Exception):
    """An answer with a status of 400 or more, in whichever API's own JSON.

    `parameter` names the field that is wrong, `code` is OpenAI's word for the mistake.
    """

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.parameter = status, message, parameter
        self.code, self.retry_after = code, retry_after


@dataclass(frozen=True)
class Limits:
    """Of one request, except `sequences`, which counts those of all requests that run or wait.

    `new_tokens` bounds what a response may have, whatever is asked; None is what the context holds.
    `body_seconds` is the time to send a request in, `seconds` the time until its answer is cut.
    """

    body_bytes: int = 8 * 2**20
    prompt_tokens: int = 8191
    new_tokens: int | None = None
    choices: int = 16
    sequences: int = 256
    body_seconds: float = 30.0
    seconds: float = 600.0

    def __post_init__(self):
        for name in ("body_bytes", "prompt_tokens", "choices", "sequences", "body_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.seconds > 0 or (self.new_tokens is not None and self.new_tokens < 1):
            raise ValueError("seconds and new_tokens must be positive")


class Admission:
    """Counts the sequences that run or wait, and turns away those that would be too many."""

    def __init__(self, limits: Limits, rows: int):
        self._limits, self._rows = limits, rows
        self.sequences = 0
        self._seconds = 1.0  # that a sequence takes, a running mean

    @contextlib.contextmanager
    def enter(self, sequences: int, clock) -> Iterator[None]:
        """While the block runs so many more are there. Raises `ApiError` 429 for too many."""
        most = self._limits.sequences
        if sequences > most:
            raise ApiError(400, f"a request may have {most} sequences, this one has {sequences}")
        if self.sequences + sequences > most:
            raise ApiError(
                429,
                f"the server is busy with {self.sequences} sequences and takes {most}: try again",
                code="rate_limit_exceeded",
                retry_after=self.retry_after,
            )
        self.sequences += sequences
        begun = clock()
        try:
            yield
        finally:
            self.sequences -= sequences
            self._seconds += 0.1 * (clock() - begun - self._seconds)

    @property
    def retry_after(self) -> int:
        """Seconds in which a share of those that are there will have gone, 1 to 60."""
        turns = self.sequences / max(self._rows, 1)
        return max(1, min(60, math.ceil(turns * self._seconds / 2)))
