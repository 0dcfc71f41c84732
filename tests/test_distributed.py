"""Processes find their job, agree, and end with a message where one is lost."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from subprocesses import environment

from mmrl.distributed import find_job
from mmrl.errors import UserError

NOTHING = {"coordinator": None, "process_id": None, "process_count": None}
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_LOCALID": "0",
}
JOBSET = {
    "JOBSET_NAME": "run",
    "JOBSET_REPLICATEDJOB_NAME": "slice",
    "JOBSET_PROCESS_COUNT": "4",
    "JOB_COMPLETION_INDEX": "3",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start() -> Iterator:
    """Starts members of a job; kills those that are left."""
    started: list[subprocess.Popen] = []

    def one(*arguments: str, **variables: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "distributed_member", *arguments],
                env=environment(JAX_NUM_CPU_DEVICES="2", **variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.wait()


def pair(start, *arguments: str) -> list[subprocess.Popen]:
    """Two members by explicit flags."""
    place = f"--coordinator=127.0.0.1:{free_port()}", "--process_count=2"
    return [start(*place, f"--process_id={number}", *arguments) for number in range(2)]


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    return [process.communicate(timeout=120)[0] for process in processes]


def check_agreement(processes: list[subprocess.Popen]) -> None:
    texts = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], texts
    for number, text in enumerate(texts):
        assert f"member {number} of 2: 2 of 4 devices, sum 10\n" in text


def test_two_processes_see_all_devices_and_their_sum_agrees(start):
    check_agreement(pair(start))


def test_slurms_variables_join_the_processes(start):
    port = str(free_port())
    check_agreement(
        [start(**SLURM, SLURM_PROCID=str(number), JAX_COORDINATOR_PORT=port) for number in range(2)]
    )


def test_gkes_variables_of_two_tpu_slices_join_the_processes(start):
    """Without chips: jax is told that it is on a TPU machine, and computes on the CPU after."""
    shared = {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
        "MEGASCALE_NUM_SLICES": "2",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_PLATFORMS": "tpu,cpu",
    }
    check_agreement([start(**shared, MEGASCALE_SLICE_ID=str(number)) for number in range(2)])


@pytest.mark.parametrize("then", ["sleep", "sum"])
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_the_other_ends_with_a_message_within_a_bound(victim, then, start):
    bound = 60  # for a heartbeat of 5 s, on a busy machine
    processes = pair(start, f"--victim={victim}", f"--then={then}", "--heartbeat_timeout_seconds=5")
    survivor = processes[1 - victim]
    assert processes[victim].wait(timeout=120) == -9
    killed = time.monotonic()
    text, _ = survivor.communicate(timeout=120)
    assert time.monotonic() - killed < bound
    assert survivor.returncode not in (0, 2)
    assert "another task died" in text or "another process died" in text


def test_where_one_fails_the_other_ends_too_and_the_error_is_shown(start):
    processes = pair(start, "--victim=1", "--fails", "--then=sum", "--heartbeat_timeout_seconds=5")
    texts = outputs(processes)
    assert processes[1].returncode == 1
    assert "RuntimeError: the victim's own error" in texts[1]
    assert "The same command continues" in texts[1]
    assert processes[0].returncode not in (0, 2)


def wait_for(line: str, processes: list[subprocess.Popen]) -> None:
    for process in processes:
        assert process.stdout is not None
        while line not in (read := process.stdout.readline()):
            assert read, "ended early"


def test_sigterm_asks_the_run_to_stop_after_joining(start):
    """jax's runtime has a handler of its own, which must not swallow the signal."""
    processes = pair(start, "--then=stop")
    wait_for("ready", processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert all("asked to stop" in text for text in outputs(processes))
    assert [process.returncode for process in processes] == [0, 0]


def test_sigterm_ends_a_process_that_has_nothing_to_save_yet(start):
    processes = pair(start, "--then=sleep")
    wait_for("sum", processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in processes] == [-signal.SIGTERM] * 2


def test_a_process_whose_peers_are_missing_ends_with_a_message(start):
    process = start(
        f"--coordinator=127.0.0.1:{free_port()}",
        "--process_count=2",
        "--process_id=0",
        "--initialization_timeout_seconds=3",
    )
    (text,) = outputs([process])
    assert process.returncode not in (0, 2)
    assert "this process ends after 3 s if others are missing" in text


def test_a_port_that_is_taken_is_an_error(start):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        process = start(f"--coordinator=127.0.0.1:{port}", "--process_count=2", "--process_id=0")
        (text,) = outputs([process])
    assert process.returncode == 2
    assert f"port {port} of this host is taken" in text and "Traceback" not in text


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")},  # the batch shell
        {**TPU, "TPU_WORKER_HOSTNAMES": "localhost"},
        {**TPU, "TPU_SKIP_MDS_QUERY": "1"},
        {**TPU, "TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
        {**JOBSET, "JOBSET_PROCESS_COUNT": "1", "JOB_COMPLETION_INDEX": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_process_alone_joins_nothing(environment):
    assert find_job(NOTHING, environment) is None
    assert find_job({**NOTHING, **flags("h:1", 0, 1)}, {}) is None


def flags(coordinator: str, process: int, count: int) -> dict:
    return {"coordinator": coordinator, "process_id": process, "process_count": count}


@pytest.mark.parametrize(
    ("environment", "method"),
    [
        ({**SLURM, "SLURM_PROCID": "1"}, "slurm"),
        ({**TPU, "TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
        ({**TPU, "TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "gketpu"),
        ({**TPU, "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        (TPU, "gcetpu"),
    ],
)
def test_jax_reads_the_clusters_that_it_knows(environment, method):
    assert find_job(NOTHING, environment) == {"cluster_detection_method": method}


def test_flags_win_over_the_environment():
    found = find_job(flags("10.0.0.1:99", 1, 2), {**SLURM, "SLURM_PROCID": "0", **JOBSET})
    assert found is not None
    assert (found["coordinator_address"], found["process_id"]) == ("10.0.0.1:99", 1)
    assert found["cluster_detection_method"] == "deactivate"


def test_a_jobsets_first_pod_coordinates():
    found = find_job(NOTHING, JOBSET)
    assert found is not None
    assert found["coordinator_address"] == "run-slice-0-0.run:8476"
    assert (found["process_id"], found["num_processes"]) == (3, 4)


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ({**NOTHING, "process_id": 1}, {}, "--process_id=1 without --coordinator and --process_c"),
        ({**NOTHING, "coordinator": "h:1"}, {}, "joins a job by all of --coordinator=HOST:PORT"),
        (flags("host", 0, 2), {}, "--coordinator=host: expected HOST:PORT"),
        (flags("host:0", 0, 2), {}, "expected HOST:PORT"),
        (flags("host:port", 0, 2), {}, "expected HOST:PORT"),
        (flags("host:99999", 0, 2), {}, "expected HOST:PORT"),
        (flags("h:1", 2, 2), {}, "--process_id=2 of --process_count=2: .* 0 to 1"),
        (NOTHING, {"JOBSET_NAME": "run"}, "JOBSET_NAME is set but JOBSET_REPLICATEDJOB_NAME and"),
    ],
)
def test_half_a_place_in_a_job_is_an_error(given, environment, message):
    with pytest.raises(UserError, match=message):
        find_job(given, environment)
