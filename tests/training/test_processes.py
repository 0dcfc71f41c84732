"""The trainer as 2 and 4 processes on the CPU, which talk by gloo: the same run as one process.

Every job has four devices in one mesh, however many processes share them.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from subprocesses import TESTS, environment

pytestmark = pytest.mark.slow

CONFIG = TESTS / "configs" / "copy_letter_dense.py"
EPISODES = TESTS / "configs" / "two_letters.py"
DEVICES = 4
SETTINGS = (
    "mesh.data=2",
    "mesh.fsdp=2",
    "evaluation.prompts=6",  # four processes have 2, 2, 2 and 0 of them
    "dynamic_sampling_rounds=2",
    "reward=oracles.judged_letters:score",
    "rollouts_interval=1",
    # The paper's 1e-15 would make steps of the learning rate of a gradient that is rounding alone.
    "optimizer.eps=1e-3",
    "warmstart.optimizer.eps=1e-3",
)
STOPPED = 143
NOISE = ("logprob/abs_diff_mean", "logprob/abs_diff_max")  # rounding itself
PROMPTS, GROUP = 8, 8


class Job:
    """`processes` processes of a module on the same run; their output is in `logs`."""

    def __init__(self, directory: Path, processes: int, module: str, *arguments: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
        variables = environment(
            JAX_NUM_CPU_DEVICES=str(DEVICES // processes),
            JUDGED=str(directory / f"judged.{processes}"),
        )
        command = [sys.executable, "-m", module, f"--config={CONFIG}", *arguments]
        command += [f"--config.{setting}" for setting in SETTINGS]
        command += [place, f"--process_count={processes}", "--heartbeat_timeout_seconds=10"]
        self.logs = [directory / f"log.{time.monotonic_ns()}.{i}" for i in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, f"--process_id={number}"],
                        cwd=directory,
                        env=variables,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, seconds: float = 600) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def output(self, number: int) -> str:
        return self.logs[number].read_text()

    def finish(self) -> None:
        assert self.wait() == [0] * len(self.processes), self.output(0) + self.output(-1)


def train(directory: Path, processes: int, name: str, *arguments: str) -> Job:
    return Job(directory, processes, "mmrl.train", f"--workdir={directory / name}", *arguments)


def rows(run: Path) -> list[dict]:
    """The metrics, times aside."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(x).items() if not k.startswith(("time/", "throughput/"))}
        for x in lines
    ]


def wait_for_row(job: Job, run: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or len(rows_so_far(run)) < count:
        assert all(process.poll() is None for process in job.processes), job.output(0)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().split("\n")[:-1]


def sampled(run: Path, step: int) -> dict[int, list]:
    """Group: the text and reward of its samples, as they are on disk."""
    found: dict[int, list] = {}
    for line in (run / "rollouts" / f"{step}.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["group"], []).append(
            (row["prompt"], row["response_tokens"], row["reward"])
        )
    return found


def arrays_on_disk(checkpoint: Path) -> list[np.ndarray]:
    """Parameters and optimizer state, read without devices."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(checkpoint / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(checkpoint / "state", restore_args=as_numpy)
    return jax.tree.leaves([state[name] for name in ("params", "opt_state")])


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    letters = [{"prompt": f"{letter}>", "label": letter} for letter in "abcd"] * 4
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in letters))
    return path


@pytest.fixture(scope="module")
def whole(directory) -> Path:
    """Where the undisturbed runs of 1, 2 and 4 processes are, as `1`, `2` and `4`."""
    for processes in (1, 2, 4):
        train(directory, processes, str(processes)).finish()
    return directory


@pytest.mark.parametrize("processes", [2, 4])
def test_metrics_are_those_of_one_process_on_the_same_mesh(processes, whole):
    """Up to rounding, which every update carries on."""
    expected, found = rows(whole / "1"), rows(whole / str(processes))
    assert len(found) == len(expected) == 1 + 2 + 1 + 6
    for one, many in zip(expected, found, strict=True):
        assert one.keys() == many.keys()
        within = 1e-6 if one["phase"] == "warmstart" or one["step"] <= 1 else 1e-4
        for name in one.keys() - {"phase", *NOISE}:
            assert many[name] == pytest.approx(one[name], rel=within, abs=1e-6), (one, name)
        assert many.get(NOISE[1], 0) < 1e-5


@pytest.mark.parametrize("processes", [2, 4])
def test_the_first_process_keeps_its_own_samples_and_they_are_those_of_one_process(
    processes, whole
):
    kept = 0
    for step in range(1, 7):
        expected, found = sampled(whole / "1", step), sampled(whole / str(processes), step)
        assert expected.keys() == set(range(PROMPTS))
        assert found == {group: expected[group] for group in found}
        kept += len(found)
    assert 0 < kept < 6 * PROMPTS


@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_judges_its_own_share_and_together_they_judge_all_once(processes, whole):
    """`sample.index` counts the samples of a rollout, so shares may be read from it."""
    judged = [
        (whole / f"judged.{processes}.{number}").read_text().splitlines()
        for number in range(processes)
    ]
    everything = (whole / "judged.1.0").read_text().splitlines()
    assert Counter(line for part in judged for line in part) == Counter(everything)
    samples = PROMPTS * GROUP // processes
    training = len(everything) - 4 * 6  # the rest are evaluations
    for number, part in enumerate(judged):
        own = [line for line in part if int(line.split()[0]) >= 6]
        low, high = number * samples, (number + 1) * samples
        assert all(low <= int(line.split()[0]) < high for line in own)
        assert len(part) >= training // processes


def test_episodes_of_two_processes_are_those_of_one(directory):
    """Each plays its own share; both decode all of them."""
    arguments = (f"--config={EPISODES}", "--config.steps=2", "--config.warmstart.steps=0")
    for processes in (1, 2):
        train(directory, processes, f"episodes{processes}", *arguments).finish()
    expected, found = rows(directory / "episodes1"), rows(directory / "episodes2")
    assert len(found) == len(expected) == 3
    assert expected[1]["episode/turns_mean"] > 1
    for one, many in zip(expected, found, strict=True):
        assert one.keys() == many.keys()
        for name in one.keys() - {"phase", *NOISE}:
            within = 1e-6 if one["step"] <= 1 else 1e-3
            assert many[name] == pytest.approx(one[name], rel=within, abs=1e-7), name
        assert many.get(NOISE[1], 0) < 1e-5
    assert sampled(directory / "episodes2", 1) == {
        group: samples
        for group, samples in sampled(directory / "episodes1", 1).items()
        if group in sampled(directory / "episodes2", 1)
    }


def test_only_the_first_process_writes_outside_the_checkpoints(whole):
    """The same files as one process writes, and each metrics row once (see the first test)."""

    def names(run: Path) -> set[str]:
        files = (file for file in run.rglob("*") if file.is_file())
        return {
            str(file.relative_to(run)).partition(".out.tfevents")[0]
            for file in files
            if "checkpoints" not in file.parts
        }

    def tensorboards(run: Path) -> int:
        return len(list((run / "tensorboard").rglob("*tfevents*")))

    assert {name for name in names(whole / "4") if "tensorboard" not in name} == {
        name for name in names(whole / "1") if "tensorboard" not in name
    }
    assert tensorboards(whole / "4") == tensorboards(whole / "1") == 2


def test_a_checkpoint_of_two_processes_is_restored_bit_by_bit_in_one_and_four(whole):
    written = sorted(leaf.tobytes() for leaf in arrays_on_disk(whole / "2" / "checkpoints" / "8"))
    for processes in (1, 4):
        output = whole / f"restored.{processes}.npz"
        run = f"--workdir={whole / '2'}"
        Job(whole, processes, "restore_member", run, f"--output={output}").finish()
        with np.load(output) as arrays:
            restored = sorted(arrays[name].tobytes() for name in arrays.files)
        assert len(restored) > 30
        assert restored == written


@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_the_rest_end_with_a_message_and_the_same_command_goes_on(
    victim, whole
):
    """Process 0 is the coordinator too. After the other, the run goes on exactly as undisturbed."""
    name = f"killed{victim}"
    job = train(whole, 2, name)
    wait_for_row(job, whole / name, 6 if victim else 1)
    job.processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    statuses = job.wait(seconds=120)
    assert time.monotonic() - killed < 60  # for a heartbeat of 10 s
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] not in (0, 2, STOPPED)
    text = job.output(1 - victim)
    assert "another process died" in text or "another task died" in text
    assert len(rows_so_far(whole / name)) < 10
    if victim:
        train(whole, 2, name).finish()
        assert rows(whole / name) == rows(whole / "2")


def test_a_signal_to_one_stops_all_at_one_step_and_one_process_continues(whole):
    job = train(whole, 2, "stopped", f"--stopped_exit_status={STOPPED}")
    wait_for_row(job, whole / "stopped", 5)
    job.processes[1].send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert job.wait() == [STOPPED, STOPPED]
    assert time.monotonic() - asked < 30  # the shortest grace period, Kubernetes's default
    for number in range(2):
        assert "the same command continues" in job.output(number)
        assert "Traceback" not in job.output(number)
    stopped = len(rows(whole / "stopped"))
    assert stopped < 10
    steps = {int(path.name) for path in (whole / "stopped" / "checkpoints").iterdir()}
    assert max(steps) == stopped - 2  # the rows 0 of both phases are no steps
    train(whole, 1, "stopped").finish()
    found, expected = rows(whole / "stopped"), rows(whole / "2")
    assert found[:stopped] == expected[:stopped]
    for one, other in zip(found, expected, strict=True):
        assert other["reward/mean"] == one["reward/mean"] if "reward/mean" in one else True


def test_a_mistake_that_one_process_meets_ends_all(directory):
    """A prompt too long, in the second process's half of the only batch."""
    short = [{"prompt": "a>", "label": "a"}] * 15
    data = directory / "long.jsonl"
    data.write_text(
        "".join(json.dumps(r) + "\n" for r in [*short, {**short[0], "prompt": "aaaa>"}])
    )
    job = train(
        directory,
        2,
        "mistaken",
        "--config.data.source=long.jsonl",
        "--config.data.shuffle=False",
        "--config.warmstart.steps=0",
    )
    first, second = job.wait(seconds=300)
    assert second == 2 and first not in (0, 2)
    error = [line for line in job.output(1).splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "it must have 1 to 3" in error[0]
    assert "Traceback" not in job.output(1)
    assert "another process died" in job.output(0) or "another task died" in job.output(0)
