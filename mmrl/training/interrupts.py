"""Ctrl-C and SIGTERM ask the run to stop after its step; a second Ctrl-C stops it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the end of the block restores the earlier handlers."""
    requested = threading.Event()
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number, frame):
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in earlier:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
