"""Several processes of `mmrl.train` on this machine's CPU, as on as many machines.

    python -m launch.local --processes=2 -- --config=configs/quickstart.py --workdir=runs/two

Every line of output begins with the process's number. SIGTERM and Ctrl-C are passed on once, so
that the run saves and stops; where a process fails, the others are stopped within
`--stop_seconds`, and the exit status is that of the first that failed.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import BinaryIO

from absl import app, flags

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
_MODULE = flags.DEFINE_string("module", "mmrl.train", "What each runs, as python -m does.")
_DEVICES = flags.DEFINE_integer(
    "devices_per_process", None, "CPU devices of each process.", lower_bound=1
)
_STOP_SECONDS = flags.DEFINE_float(
    "stop_seconds", 10.0, "Time to end by SIGTERM, after a failure, before SIGKILL.", lower_bound=0
)


def command(module: str, arguments: list[str], port: int, number: int, processes: int) -> list[str]:
    """The command line of one process, with its place in the job."""
    return [
        *(sys.executable, "-u", "-m", module, *arguments),
        f"--coordinator=127.0.0.1:{port}",
        f"--process_id={number}",
        f"--process_count={processes}",
    ]


def start(words: list[str], devices: int | None) -> subprocess.Popen:
    """A process on the CPU; its output is stdout and stderr together.

    It has a session of its own, so that Ctrl-C in a terminal reaches it through the launcher alone:
    the second of two would stop it without saving.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if devices is not None:
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def copy_lines(number: int, source: BinaryIO, target: BinaryIO) -> None:
    """Copies whole lines, so that those of several processes do not mix, with the number before."""
    for line in source:
        target.write(b"[%d] %s\n" % (number, line.rstrip(b"\r\n")))
        target.flush()


def wait(processes: list[subprocess.Popen], stop_seconds: float) -> int:
    """Waits for all; after a failure stops the rest. The first failure's exit status, or 0.

    A process that a signal ended has the status 128 + signal, as in a shell.
    """
    running, status = list(processes), 0
    deadline = float("inf")
    while running:
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            code = process.returncode
            status = status or (128 - code if code < 0 else code)
            if code and deadline == float("inf"):
                deadline = time.monotonic() + stop_seconds
                send(running, signal.SIGTERM)
        if time.monotonic() > deadline:
            send(running, signal.SIGKILL)
        time.sleep(0.05)
    return status


def send(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        process.send_signal(number)


def main(argv: list[str]) -> None:
    processes: list[subprocess.Popen] = []
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, lambda number, frame: send(processes, number))
    port, count = free_port(), _PROCESSES.value
    readers = []
    for number in range(count):
        process = start(command(_MODULE.value, argv[1:], port, number, count), _DEVICES.value)
        processes.append(process)
        arguments = number, process.stdout, sys.stdout.buffer
        readers.append(threading.Thread(target=copy_lines, args=arguments))
        readers[-1].start()
    status = wait(processes, _STOP_SECONDS.value)
    for reader in readers:
        reader.join(timeout=5)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main)
