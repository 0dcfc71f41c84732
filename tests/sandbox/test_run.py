"""What `run` gives: output as written, the same wherever it ran, at once or many at a time."""

import asyncio
import contextlib
import os
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmrl.errors import UserError
from mmrl.sandbox import Limits, run, run_async, run_python, run_python_async


def test_a_program_gets_input_files_and_arguments_and_gives_its_output(kind):
    source = (
        "import sys, helper\nprint(input(), helper.X, open('data/a.txt').read())\n"
        "print('é', file=sys.stderr)\nsys.exit(2)"
    )
    files = {"helper.py": "X = 5", "data/a.txt": "ü\r\n"}
    execution = run_python(source, stdin="first\nsecond", files=files)
    assert (execution.status, execution.exit_code) == ("failed", 2)
    assert (execution.stdout, execution.stderr) == ("first 5 ü\n\n", "é\n")
    echoed = run(["sh", "-c", 'echo "$0" $(cat)', "a b"], stdin="c")
    assert (echoed.status, echoed.stdout) == ("ok", "a b c\n")


def test_what_is_printed_does_not_depend_on_where_the_folder_lies(kind):
    source = (
        "import os, tempfile\nprint(os.getcwd(), os.environ['HOME'], tempfile.gettempdir())\n"
        "print(hash('x'), __file__)\n1 / 0"
    )
    first, second = run_python(source), run_python(source)
    assert first.stdout.startswith("/scratch /scratch /scratch\n")
    assert 'File "/scratch/main.py", line 4' in first.stderr
    assert (first.stdout, first.stderr) == (second.stdout, second.stderr)


def test_a_folder_is_writable_empty_and_of_one_execution_only(kind):
    source = "import os\nprint(os.listdir('.'))\nos.mkdir('d'); open('d/f', 'w').write('x')\n"
    source += "os.rename('d/f', 'g'); print(open('g').read(), sorted(os.listdir('.')))"
    for _ in range(2):
        assert run_python(source).stdout == "['main.py']\nx ['d', 'g', 'main.py']\n"


def test_bytes_that_are_no_text_are_replaced(kind):
    source = "import os; os.write(1, bytes(range(256)))"
    assert run_python(source).stdout == bytes(range(256)).decode("utf-8", "replace")
    lone = run_python("print(ascii(input()))", stdin="\ud800")
    assert lone.status in ("ok", "failed")
    assert run_python("x = '\ud800'").status == "failed"


def test_packages_of_this_python_and_programs_of_the_system_work(kind):
    source = "import numpy, subprocess\nprint(int(numpy.linalg.det(numpy.eye(50))))\n"
    source += "print(subprocess.run(['ls', '/usr'], capture_output=True, text=True).returncode)"
    assert run_python(source, limits=Limits(wall_seconds=60)).stdout == "1\n0\n"
    asynchronous = "import asyncio\nasync def f():\n    await asyncio.sleep(0); print('done')\n"
    assert run_python(f"{asynchronous}asyncio.run(f())").stdout == "done\n"


def test_what_was_written_before_a_limit_is_kept(kind):
    source = "import time\nprint('before', flush=True)\ntime.sleep(30)"
    execution = run_python(source, limits=Limits(wall_seconds=1))
    assert (execution.status, execution.stdout) == ("timeout", "before\n")
    assert 1 <= execution.seconds < 5


def test_a_command_that_does_not_exist_is_a_failure_as_of_a_shell(kind):
    execution = run(["no-such-program"])
    assert (execution.status, execution.exit_code) == ("failed", 127)
    assert "no-such-program: No such file" in execution.stderr
    assert run(["./main.py"], files={"main.py": "x"}).exit_code == 126


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_files_lie_below_the_folder(path):
    with pytest.raises(UserError, match="relative paths"):
        run_python("", files={path: "x"})


@pytest.mark.parametrize("command", ["ls", [], ["ls", "a\0b"]])
def test_a_command_is_a_list_of_words(command):
    with pytest.raises(UserError, match="list of words"):
        run(command)


@pytest.mark.parametrize("limits", [{"wall_seconds": 0}, {"memory_mb": -1}, {"files": "5"}])
def test_limits_are_numbers_above_zero(limits):
    with pytest.raises(UserError, match=f"Limits.{next(iter(limits))} must be"):
        Limits(**limits)


def test_64_executions_run_at_once(kind):
    source = "import time\nprint(time.time())\ntime.sleep(8)\nprint(time.time())"
    limits = Limits(wall_seconds=60)

    def number(index):
        execution = run_python(f"{source}\nprint({index} ** 2)", limits=limits)
        return execution.status, *execution.stdout.split()

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(number, range(64)))
    assert [(status, int(square)) for status, _, _, square in results] == [
        ("ok", index**2) for index in range(64)
    ]
    last_start = max(float(start) for _, start, _, _ in results)
    first_end = min(float(end) for _, _, end, _ in results)
    together = sum(float(start) <= first_end for _, start, _, _ in results)
    assert last_start < first_end or together >= 60, (last_start, first_end, together)


def test_executions_of_asyncio_overlap_and_do_not_hold_the_loop(kind):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.05)
                ticks += 1

        ticking = asyncio.create_task(tick())
        started = time.monotonic()
        source = "import time; time.sleep(2); print(input())"
        results = await asyncio.gather(*(run_python_async(source, stdin=f"{i}") for i in range(4)))
        ticking.cancel()
        return [r.stdout for r in results], time.monotonic() - started, ticks

    outputs, seconds, ticks = asyncio.run(main())
    assert outputs == ["0\n", "1\n", "2\n", "3\n"]
    assert seconds < 8
    assert ticks > 10


def test_cancelling_ends_the_program_before_it_returns(kind):
    mark = f"mark-{uuid.uuid4().hex}"

    def marked():
        found = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += mark.encode() in path.read_bytes()
        return found

    async def main():
        source = "import os, time\nos.fork()\nwhile True: time.sleep(1)"
        command = [sys.executable, "-S", "-c", source, mark]
        task = asyncio.create_task(run_async(command, limits=Limits(wall_seconds=60)))
        deadline = time.monotonic() + 20
        while marked() < 3 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        before = marked()
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return before, time.monotonic() - started

    before, seconds = asyncio.run(main())
    assert before >= 3
    assert seconds < 5
    time.sleep(0.2)
    assert marked() == 0


def test_no_descriptor_and_no_thread_stays(kind):
    run_python("")
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(3):
        run_python("print(1)")
        run_python("while True: print(1)", limits=Limits(output_kb=10))
        asyncio.run(run_python_async("print(1)"))
    time.sleep(0.2)
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
