"""Programs that use up what they get, hang, or leave something behind: all of it is limited."""

import glob
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid

import pytest

from mmrl.sandbox import Limits, run, run_python

SOON = 8.0  # seconds, for what must not wait for the wall time of 30
PATIENT = Limits(wall_seconds=30, cpu_seconds=30)


@pytest.fixture
def mark():
    """A word on the command line of every process of a test."""
    return f"mark-{uuid.uuid4().hex}"


def alive(mark):
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                if mark.encode() in file.read():
                    found.append(path)
        except OSError:
            pass
    return found


def gone(mark):
    """Whether no process has `mark`, a moment later at most."""
    deadline = time.monotonic() + 5
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(mark)


def run_marked(source, mark, **limits):
    limits = Limits(**{"wall_seconds": 30, "cpu_seconds": 30} | limits)
    execution = run([sys.executable, "-S", "-c", source, mark], limits=limits)
    assert gone(mark)
    return execution


@pytest.fixture
def scratch(open_folder, monkeypatch):
    """The folder that scratch folders are made in."""
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    return open_folder


CHILD = "import os, signal, sys, time\n"
FOREVER = "\nwhile True: time.sleep(1)"


# Processes that stay, each in its own way. The program itself goes on as well, so time ends it.
@pytest.mark.parametrize(
    "source",
    {
        "sleep": "",
        "work": "while True: pass",
        "ignore signals": "for n in set(range(1, 65)) - {9, 19, 32, 33}:\n"
        "    signal.signal(n, signal.SIG_IGN)",
        "stop itself": "try: os.kill(0, signal.SIGSTOP)\nexcept OSError: pass",
        "wait with closed streams": "for n in (0, 1, 2): os.close(n)",
        "fork without end": "while True:\n    try: os.fork()\n    except OSError: pass",
        "fork and die without end": "while True:\n"
        "    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass",
        "kill everything": "os.fork()\nwhile True:\n"
        "    try: os.kill(-1, 9)\n    except OSError: time.sleep(0.01)",
    }.items(),
    ids=lambda item: item[0],
)
def test_time_ends_programs_that(source, kind, mark):
    name, code = source
    execution = run_marked(CHILD + code + FOREVER, mark, wall_seconds=2)
    assert execution.seconds < SOON
    if name == "fork and die without end":  # the program is the first of them
        assert execution.status == "ok"
    elif name.startswith("fork"):
        assert execution.status in ("timeout", "processes"), execution
    elif name == "kill everything":  # of the program and its child the first ends the other
        assert execution.status in ("timeout", "failed"), execution
    else:
        assert execution.status == "timeout", execution


def test_the_marks_of_processes_that_stay_are_seen(mark):
    source = "print(1, flush=True); input()"
    command = [sys.executable, "-c", source, mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert alive(mark)
        process.communicate(b"\n")
    assert gone(mark)


@pytest.mark.parametrize(
    "source",
    {
        "a child": "if os.fork(): print('done'); sys.exit()",
        "a daemon": "if os.fork(): print('done', flush=True); os._exit(0)\n"
        "os.setsid()\nif os.fork(): os._exit(0)\n"
        "for n in range(3): os.close(n)",
        "children that ignore signals": "if os.fork(): print('done'); sys.exit()\n"
        "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\nos.fork()",
        "zombies": "if os.fork(): print('done'); sys.exit()\n"
        "for _ in range(5):\n    if not os.fork(): os._exit(0)",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_program_that_ends_takes_along(source, kind, mark):
    execution = run_marked(CHILD + source[1] + FOREVER, mark)
    assert (execution.status, execution.stdout) == ("ok", "done\n"), execution
    assert execution.seconds < SOON


def test_processor_time_is_that_of_all_processes(kind):
    source = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    execution = run_python(source, limits=Limits(wall_seconds=30, cpu_seconds=1.5))
    assert execution.status == "timeout"
    assert execution.seconds < 20


def test_memory_of_a_process_ends(kind):
    source = "import mmap, time\nm = mmap.mmap(-1, 2**30)\nm.write(bytes(2**30))\ntime.sleep(30)"
    execution = run_python(source, limits=PATIENT)
    assert execution.status in ("memory", "failed")
    assert "Cannot allocate memory" in execution.stderr
    assert run_python("x = bytearray(2**30)", limits=PATIENT).status == "memory"


def test_memory_of_all_processes_together_ends(kind):
    source = """
import os, time
for _ in range(6):
    if not os.fork():
        block = bytearray(os.urandom(2**20)) * 100
        time.sleep(30)
time.sleep(30)
"""
    execution = run_python(source, limits=PATIENT)
    assert execution.status == "memory", execution
    assert execution.seconds < SOON * 2


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end_ends(stream, kind):
    source = f"import sys\nwhile True: print('x' * 1000, file=sys.{stream})"
    execution = run_python(source, limits=Limits(wall_seconds=30, output_kb=100))
    assert execution.status == "output"
    assert len(execution.stdout) + len(execution.stderr) == 100 * 1024
    assert execution.seconds < SOON


def test_files_end(kind, scratch):
    large = "f = open('f', 'wb')\nfor _ in range(300): f.write(bytes(2**20))\nf.flush()"
    execution = run_python(large, limits=PATIENT)
    told = ["File too large" in execution.stderr, "No space left" in execution.stderr]
    assert execution.status == "files" or any(told), execution
    together = "import time\n" + "\n".join(
        f"with open('f{n}', 'wb') as f: f.write(bytes(60 * 2**20))" for n in range(20)
    )
    execution = run_python(f"{together}\ntime.sleep(30)", limits=PATIENT)
    assert execution.status == "files" or "No space left" in execution.stderr, execution
    many = "import time\nfor n in range(100_000): open(str(n), 'w').close()\ntime.sleep(30)"
    assert run_python(many, limits=PATIENT).status == "files"
    assert not os.listdir(scratch)


def test_folders_that_are_hard_to_remove_are_removed(kind, scratch):
    deep = "import os\nfor _ in range(900): os.mkdir('a' * 200); os.chdir('a' * 200)"
    run_python(deep, limits=PATIENT)
    run_python("import os\nos.makedirs('a/b'); os.mkdir('c', 0)\nos.symlink('/usr', 'a/l')")
    assert os.path.isdir("/usr/bin")
    assert not os.listdir(scratch)


def test_open_files_and_threads_end(kind):
    source = "files = [open('/dev/null') for _ in range(1000)]"
    assert "Too many open files" in run_python(source).stderr
    threads = "import threading, time\n" + (
        "for _ in range(200): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    execution = run_python(threads)
    assert execution.status == "processes" or "can't start new thread" in execution.stderr


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("def f(): f()\nf()", 1),
        (
            "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: 0\n"
            "for _ in range(10**6): f = (f,)\nhash(f)",
            128 + signal.SIGSEGV,
        ),
        ("import ctypes; ctypes.string_at(0)", 128 + signal.SIGSEGV),
        ("import os; os._exit(3)", 3),
        ("import sys; sys.exit(0 if sys.stdin.read() == '' == sys.stdin.read() else 5)", 0),
        ("import os; os.close(1); os.close(2)", 0),
    ],
)
def test_a_program_fails_by_itself(source, code, kind):
    execution = run_python(source, limits=PATIENT)
    assert execution.exit_code == code, execution
    assert execution.status == ("failed" if code else "ok")
    assert execution.seconds < SOON


def test_a_large_input_that_nobody_reads_does_not_block(kind):
    assert run_python("print('done')", stdin="x" * 10**6, limits=PATIENT).stdout == "done\n"
    counted = run_python("import sys; print(len(sys.stdin.read()))", stdin="x" * 10**6)
    assert counted.stdout == "1000000\n"


def test_programs_end_with_a_parent_that_is_killed(kind, mark, open_folder, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(open_folder))
    inside = f"import time, sys; time.sleep(60); {mark!r}"
    outside = (
        "from mmrl.sandbox import run; import sys\n"
        f"run([sys.executable, '-c', {inside!r}, {mark!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", outside]) as process:
        deadline = time.monotonic() + 20
        while len(alive(mark)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(alive(mark)) >= 3
        process.kill()
    assert gone(mark)
