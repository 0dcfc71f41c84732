"""Runs a command under a given confinement: starts it, feeds it, reads it, watches it, ends it."""

import contextlib
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGXCPU, SIGXFSZ

from mmrl.sandbox.guard import READY
from mmrl.sandbox.launch import MB, SCRATCH, Kind, Launch, environment, is_root, new_user
from mmrl.sandbox.limits import Execution, Limits, Status
from mmrl.sandbox.watch import folder_usage, mounted_files, tree_usage

CHUNK = 65536
FIRST_LOOK, LAST_LOOK = 0.02, 0.1  # seconds between looks at what a program uses
END_SECONDS = 10.0  # for what ends a program to come back


class ConfinementError(RuntimeError):
    """A program could not be confined, so it did not run."""


@dataclass
class _Running:
    """A started program: its process, what it wrote so far and the limit that it went beyond."""

    process: subprocess.Popen[bytes]
    launch: Launch
    limits: Limits
    started: float
    stdin: memoryview
    written: dict[str, bytearray] = field(
        default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()}
    )
    beyond: Status | None = None


def execute(
    kind: Kind,
    command: Sequence[str],
    stdin: str,
    files: Mapping[str, str],
    limits: Limits,
    confinement: str,
    cancelled: threading.Event | None = None,
) -> Execution:
    """Runs `command` to its end. Raises `ConfinementError` if it cannot be confined as `kind` says.

    Once `cancelled` is set the program is ended, and what is returned means nothing.
    """
    uid = new_user() if is_root() and kind != "none" else None
    scratch = None if kind == "bubblewrap" else tempfile.mkdtemp(prefix="mmrl-sandbox-")
    try:
        if scratch and uid is not None:
            os.chown(scratch, uid, uid)
        launch = Launch(kind, scratch and os.path.realpath(scratch), uid)
        running, seconds = _execute(launch, command, stdin, files, limits, cancelled)
    finally:
        if scratch:
            _remove(scratch)
    stdout, stderr = (_text(running, name) for name in ("stdout", "stderr"))
    status = running.beyond or _status(running, stderr)
    code = running.process.returncode
    return Execution(status, code, stdout, stderr, seconds, confinement)


def _execute(
    launch: Launch,
    command: Sequence[str],
    stdin: str,
    files: Mapping[str, str],
    limits: Limits,
    cancelled: threading.Event | None,
) -> tuple[_Running, float]:
    """(the program, which has ended, and the seconds that it took)."""
    report, report_end = os.pipe()
    with open(report, "rb") as said, open(os.memfd_create("orders"), "w+b") as orders:
        try:
            orders.write(launch.orders(files, limits, report_end))
            orders.flush()
            orders.seek(0)
            given = memoryview(stdin.encode("utf-8", "surrogatepass"))
            started = time.monotonic()
            process = subprocess.Popen(
                launch.arguments(command, orders.fileno(), limits),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=environment(launch.scratch),
                pass_fds=(orders.fileno(), report_end),
                start_new_session=True,
            )
        finally:
            os.close(report_end)
        running = _Running(process, launch, limits, started, given)
        with process:
            try:
                _communicate(running, cancelled)
            finally:
                _end(running)
        seconds = time.monotonic() - started
        message = b"" if running.beyond else said.read()
    if not running.beyond and message != READY:
        reason = message or bytes(running.written["stderr"]) or b"it ended before it began"
        raise ConfinementError(f"{launch.kind}: {reason.decode(errors='replace').strip()}")
    return running, seconds


def _communicate(running: _Running, cancelled: threading.Event | None) -> None:
    """Until the program has ended and all it wrote is read, or a limit is reached."""
    process = running.process
    pidfd = os.pidfd_open(process.pid)
    look, next_look = FIRST_LOOK, running.started + FIRST_LOOK
    end = running.started + running.limits.wall_seconds
    streams = {"stdin": process.stdin, "stdout": process.stdout, "stderr": process.stderr}
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ, "ended")
        for name, stream in streams.items():
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            event = selectors.EVENT_WRITE if name == "stdin" else selectors.EVENT_READ
            selector.register(stream, event, name)
        try:
            while selector.get_map() and not running.beyond:
                now = time.monotonic()
                if now >= end or (cancelled is not None and cancelled.is_set()):
                    running.beyond = "timeout"
                elif now >= next_look:
                    _look(running)
                    look = min(LAST_LOOK, look * 1.5)
                    next_look = now + look
                for key, _ in selector.select(max(0.0, min(end, next_look) - time.monotonic())):
                    if not _serve(running, key):
                        selector.unregister(key.fileobj)
                        if key.data != "ended":
                            streams[key.data].close()  # type: ignore[union-attr]
        finally:
            os.close(pidfd)


def _serve(running: _Running, key: selectors.SelectorKey) -> bool:
    """Reads or writes what can be at once; whether there may be more."""
    if key.data == "ended":
        return False
    if key.data == "stdin":
        try:
            running.stdin = running.stdin[os.write(key.fd, running.stdin[:CHUNK]) :]
        except BrokenPipeError:
            return False
        return len(running.stdin) > 0
    data = os.read(key.fd, CHUNK)
    room = int(running.limits.output_kb * 1024) - sum(map(len, running.written.values()))
    running.written[key.data] += data[:room]
    if len(data) > room:
        running.beyond = "output"
    return len(data) > 0


def _look(running: _Running) -> None:
    """Notes the first limit that the program's processes or files are beyond."""
    limits, launch = running.limits, running.launch
    usage = tree_usage(running.process.pid)
    if launch.scratch is None:
        files, size = mounted_files(usage.pids, SCRATCH), 0  # the size is the kernel's affair
    else:
        files, size = folder_usage(launch.scratch, int(limits.files))
    if launch.shares_user and usage.processes > limits.processes + 1:  # and its supervisor
        running.beyond = "processes"
    elif usage.memory_bytes > limits.memory_mb * MB:
        running.beyond = "memory"
    elif usage.cpu_seconds > limits.cpu_seconds:
        running.beyond = "timeout"
    elif files > limits.files or size > limits.file_mb * MB:
        running.beyond = "files"


def _end(running: _Running) -> None:
    """Ends the program and everything it has started."""
    process = running.process
    if running.launch.kind == "bubblewrap":
        process.kill()  # its namespace goes with it
    else:
        process.terminate()  # the supervisor ends the rest
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()


def _status(running: _Running, stderr: str) -> Status:
    """Of a program that ended by itself; the kernel's limits show in how it did."""
    code = running.process.returncode
    if code == 128 + SIGXCPU:
        return "timeout"
    if code == 128 + SIGXFSZ:
        return "files"
    if code and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "failed" if code else "ok"


def _text(running: _Running, name: str) -> str:
    """What was written, the same wherever the scratch folder lies."""
    text = running.written[name].decode("utf-8", "replace")
    scratch = running.launch.scratch
    return text.replace(scratch, SCRATCH) if scratch else text


def _remove(folder: str) -> None:
    """Whatever lies there: closed folders and paths of any depth too."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*command, folder], stderr=subprocess.DEVNULL, check=False)
