"""How a process joins a job of several: by flags, SLURM, a TPU slice or a JobSet; else it is alone.

    python -m mmrl.train … --coordinator=HOST:PORT --process_id=0 --process_count=2

Process 0 serves the coordinator, which all others must reach. jax watches the members by
heartbeats: where one dies, the others end with status 134 and its name within
`--heartbeat_timeout_seconds`, also when they wait in a collective.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from absl import flags, logging

from mmrl.errors import UserError, report

COORDINATOR_PORT = 8476
# XLA's CPU client has as many threads as cores, or as NPROC says. Each of the up to 32 programs in
# flight on a device holds one while it waits for other processes: with fewer, all can hold some
# and wait for the rest.
CPU_THREADS = 64
_ITSELF = "deactivate"  # jax is told everything and detects nothing
_SLURM = "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"
_JOBSET = "JOBSET_NAME", "JOBSET_REPLICATEDJOB_NAME", "JOBSET_PROCESS_COUNT"

_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of the job.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process in the job, from 0.", lower_bound=0
)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Processes of the job.", lower_bound=1)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout_seconds", 300, "Wait so long for the other processes.", lower_bound=1
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout_seconds", 60, "A process silent for so long is dead.", lower_bound=1
)


@contextlib.contextmanager
def job() -> Iterator[None]:
    """The block is this process's part in the job that flags or environment name, if any.

    Must come before the first use of a device. Raises `UserError` for flags that contradict each
    other. The process ends with status 134 if the others do not come in time. What the block raises
    ends one process of several at once, with status 2 for a `UserError` and else 1: Python's own
    end would wait for the others, which wait for this one in a collective.
    """
    several = _initialize()
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if several:
            _leave_at_once(error)
        raise


def _initialize() -> bool:
    """Joins the job; False for a process alone."""
    job = find_job(
        {
            "coordinator": _COORDINATOR.value,
            "process_id": _PROCESS_ID.value,
            "process_count": _PROCESS_COUNT.value,
        },
        os.environ,
    )
    if job is None:
        return False
    if "coordinator_address" in job and job["process_id"] == 0:
        _check_port(job["coordinator_address"])
    logging.info(
        "Joining %s; this process ends after %d s if others are missing.",
        ", ".join(f"{name}={value}" for name, value in job.items() if value != _ITSELF),
        _INITIALIZATION_TIMEOUT.value,
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    os.environ.setdefault("NPROC", str(max(CPU_THREADS, len(os.sched_getaffinity(0)))))
    jax.distributed.initialize(
        **job,
        initialization_timeout=_INITIALIZATION_TIMEOUT.value,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT.value,
        shutdown_timeout_seconds=max(_HEARTBEAT_TIMEOUT.value, 60),
    )
    # jax's runtime only notes a SIGTERM; until the run can save, it is to end the process as usual.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return True


def find_job(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """`jax.distributed.initialize`'s arguments for this process; None if it is alone.

    `given` are the flags coordinator, process_id and process_count, None where not given. They win;
    then come SLURM and TPU slices, which jax reads itself (jax/_src/clusters), then the variables
    that `launch.jobset` sets. jax's own Kubernetes detection is not used: it needs a package and
    the right to read pods. Raises `UserError`.
    """
    if any(value is not None for value in given.values()):
        return _from_flags(given)
    if all(name in environment for name in _SLURM):
        alone = int(environment["SLURM_NTASKS"]) == 1
        return None if alone else {"cluster_detection_method": "slurm"}
    if _on_tpu(environment):
        return _tpu_slice(environment)
    if "JOBSET_NAME" in environment:
        return _from_jobset(environment)
    return None


def _from_flags(given: Mapping[str, Any]) -> dict[str, Any] | None:
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        present = [f"--{name}={value}" for name, value in given.items() if value is not None]
        raise UserError(
            f"{' '.join(present)} without {' and '.join(missing)}: a process joins a job by all of "
            "--coordinator=HOST:PORT --process_id=I --process_count=N"
        )
    coordinator, process, count = (
        given[name] for name in ("coordinator", "process_id", "process_count")
    )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT, as in 10.0.0.1:8476")
    if process >= count:
        raise UserError(
            f"--process_id={process} of --process_count={count}: the processes are numbered from 0 "
            f"to {count - 1}"
        )
    return None if count == 1 else _arguments(coordinator, process, count)


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a TPU host whose chips are to be used.

    `import jax` sets TPU_ML_PLATFORM where it finds chips and libtpu (jax/_src/cloud_tpu_init.py).
    """
    platforms = environment.get("JAX_PLATFORMS", "") or "tpu"
    return environment.get("TPU_ML_PLATFORM") == "JAX" and "tpu" in platforms.split(",")


def _tpu_slice(environment: Mapping[str, str]) -> dict[str, Any] | None:
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None:
        # A virtual machine of its own, which asks Google's metadata server.
        skip = "TPU_SKIP_MDS_QUERY" in environment
        return None if skip else {"cluster_detection_method": "gcetpu"}
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    alone = len(hosts.split(",")) * slices == 1
    return None if alone else {"cluster_detection_method": "gketpu"}


def _from_jobset(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Pod 0 of job 0 coordinates, by the host name that JobSet gives it.

    NAME-REPLICATEDJOB-JOB-POD.NAME (jobset.sigs.k8s.io/docs/concepts).
    """
    missing = [name for name in (*_JOBSET, "JOB_COMPLETION_INDEX") if name not in environment]
    if missing:
        raise UserError(
            f"JOBSET_NAME is set but {' and '.join(missing)} not: set {', '.join(_JOBSET)} and "
            "completionMode: Indexed as launch/jobset.py does, or use --coordinator"
        )
    name, job, count = (environment[key] for key in _JOBSET)
    if int(count) == 1:
        return None
    coordinator = f"{name}-{job}-0-0.{name}:{COORDINATOR_PORT}"
    return _arguments(coordinator, int(environment["JOB_COMPLETION_INDEX"]), int(count))


def _arguments(coordinator: str, process: int, count: int) -> dict[str, Any]:
    return {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": process,
        "cluster_detection_method": _ITSELF,
    }


def _check_port(coordinator: str) -> None:
    """gRPC shares a port with another server in silence; two jobs would then mix."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"--coordinator={coordinator}: port {port} of this host is taken; choose "
                    "another for all processes"
                ) from error


def _leave_at_once(error: BaseException) -> NoReturn:
    if isinstance(error, UserError):
        report(error)
    else:
        traceback.print_exception(error)
        print(
            "This process of several ends by the error above. If that is a failed collective, "
            "another process died: look for the first error in the others' logs. The same command "
            "continues from the last checkpoint.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, UserError) else 1)
