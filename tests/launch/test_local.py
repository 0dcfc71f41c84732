"""Several processes of this machine: numbered lines, signals passed on once, failures end all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from subprocesses import environment

ROOT = Path(__file__).parents[2]
# Stands in for the trainer: what it does follows from its arguments.
CHILD = """
import signal, sys, time
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
number = int(words["process_id"])
signals = []
def note(number, frame):
    signals.append(signal.Signals(number).name)
    if "deaf" not in words:
        time.sleep(0.5)  # a second signal would arrive meanwhile
        print("got", *signals, flush=True)
        sys.exit(int(words.get("status", 0)))
for wanted in (signal.SIGINT, signal.SIGTERM):
    signal.signal(wanted, note)
print("place", number, words["process_count"], words["coordinator"], flush=True)
if words.get("fails") == str(number):
    time.sleep(0.2)
    sys.exit(7)
if words.get("ends"):
    print("no newline", end="")
    sys.exit(0)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def launch(tmp_path: Path):
    """Starts the launcher with stand-ins for the trainer; ends what is left of it."""
    (tmp_path / "child.py").write_text(CHILD)
    started = []

    def start(*arguments: str, processes: int = 2, stop: float = 1.0) -> subprocess.Popen:
        options = f"--processes={processes}", "--module=child", f"--stop_seconds={stop}"
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.local", *options, "--", *arguments],
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def wait_until_ready(process: subprocess.Popen, processes: int = 2) -> list[str]:
    assert process.stdout is not None
    return sorted(process.stdout.readline() for _ in range(processes))


def test_each_process_has_its_place_and_its_number_before_each_line(launch):
    output, _ = launch("--ends=1", processes=3).communicate(timeout=60)
    lines = sorted(output.splitlines())
    places = [line.split() for line in lines if "place" in line]
    assert [place[:4] for place in places] == [[f"[{i}]", "place", str(i), "3"] for i in range(3)]
    assert len({place[4] for place in places}) == 1
    assert [line for line in lines if "newline" in line] == [f"[{i}] no newline" for i in range(3)]


def test_all_that_end_well_give_status_0(launch):
    process = launch("--ends=1")
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(number, launch):
    process = launch("--status=143")
    wait_until_ready(process)
    # As Ctrl-C in a terminal does: to the launcher's whole group.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    name = signal.Signals(number).name
    assert sorted(output.splitlines()) == [f"[0] got {name}", f"[1] got {name}"]
    assert process.returncode == 143


def test_where_one_fails_the_rest_is_stopped_and_its_status_is_given(launch):
    process = launch("--fails=1", processes=3)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "[0] got SIGTERM" in output and "[2] got SIGTERM" in output


def test_what_does_not_listen_is_killed_within_the_bound(launch):
    process = launch("--fails=1", "--deaf=1", stop=0.5)
    wait_until_ready(process)
    start = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 7
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_the_trainer_stops_by_sigterm_with_the_status_that_restarts_it_and_goes_on(tmp_path):
    rows = "".join(f'{{"prompt": "{c}>", "label": "{c}"}}\n' for c in "abcd" * 4)
    (tmp_path / "data.jsonl").write_text(rows)
    run = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "launch.local", "--processes=1", "--"),
        f"--config={ROOT}/tests/configs/copy_letter.py",
        f"--workdir={run}",
        "--stopped_exit_status=143",
        f"--config.data.source={tmp_path}/data.jsonl",
        f"--config.evaluation.data.source={tmp_path}/data.jsonl",
        "--config.checkpoint.interval=1000",
    ]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 143, output
    assert list((run / "checkpoints").iterdir())
    stopped = metrics.read_text().splitlines()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert metrics.read_text().splitlines()[: len(stopped)] == stopped
    assert len(metrics.read_text().splitlines()) > len(stopped)
