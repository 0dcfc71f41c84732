"""Arguments as bash reads them back, each on one line."""

import re
import shlex
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def quote(text: str) -> str:
    """`text` as one word of bash; line breaks and control characters in $'…' escapes.

    On one line, because xpk pastes commands into an indented block of YAML. A NUL cannot be passed
    to a program and raises ValueError.
    """
    if "\0" in text:
        raise ValueError(f"an argument cannot contain NUL: {text!r}")
    if not _CONTROL.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_CONTROL.sub(_escape, escaped)}'"


def _escape(match: re.Match) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode())


def join(words: Iterable[str]) -> str:
    """A command line of quoted words."""
    return " ".join(map(quote, words))
