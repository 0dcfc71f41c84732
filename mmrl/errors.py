"""Mistakes of the user's: one clear line instead of a traceback."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator

from absl import logging


class UserError(ValueError):
    """A mistake of the user's: the message, not a traceback, names the place and the remedy."""


def report(error: UserError) -> None:
    """Prints the line that the user sees; the traceback only with `--verbosity=1`."""
    logging.debug("The error below came from:", exc_info=error)
    print(f"error: {error}", file=sys.stderr)


@contextlib.contextmanager
def user_mistakes() -> Iterator[None]:
    """For set-up code, where ValueError and OSError mean wrong input: makes them `UserError`s."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def nearest(name: str, valid: Iterable[str]) -> str:
    """' Did you mean X?' for the valid name closest to `name`, or '' (to append to a message)."""
    close = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
