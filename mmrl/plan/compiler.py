"""Compiles the programs of a config for a slice that is not there, each in a process of its own.

A TPU's or GPU's compiler is stopped when it has assigned buffers: the machine code that would
follow takes most of the time and changes neither memory nor collectives. GPUs of all kinds are
compiled for as H100s, whose description XLA gets.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.plan import buffers, hlo
from mmrl.plan.devices import Topology, parse_topology
from mmrl.plan.programs import ProgramName, lower
from mmrl.sharding import make_mesh
from mmrl.training.config import TrainConfig
from pallas_kernels import gpu_compiler, tpu_schedule

POLL_SECONDS = 0.2
_LOWERED = "lowered.json"  # when lowering began and ended, by the clock that all processes share
_ASSIGNMENT, _PROGRAM = "*after_optimizations-buffer-assignment.txt", "*after_optimizations.txt"
_OUT_OF_MEMORY = "CompileTimeHbmOom"  # a TPU's compiler gives up, its listings written


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program, per device, and what compiling it took here.

    `lower_seconds` are those of tracing and lowering, `compile_seconds` those from there until the
    buffers are assigned; `cpu_seconds` what the process used of its cores, start and imports
    included, `host_bytes` the most that it held.
    """

    name: str
    memory: buffers.Memory
    collectives: tuple[hlo.Collective, ...]
    lower_seconds: float
    compile_seconds: float
    cpu_seconds: float
    host_bytes: int


def compile_program(
    name: ProgramName, config: TrainConfig, topology: Topology, timeout_seconds: float = 900.0
) -> Compiled | None:
    """One program of `config` on a slice; None where there is nothing to do.

    Raises `UserError` where the platform's compiler is not installed or refuses the program.
    """
    with tempfile.TemporaryDirectory(prefix="plan_") as directory:
        dump = Path(directory) / "dump"
        request = {"name": name, "topology": topology.label, "config": configs.to_dict(config)}
        (Path(directory) / "request.json").write_text(json.dumps(request))
        with (Path(directory) / "log").open("w+") as log:
            start = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "mmrl.plan.compiler", directory],
                env=environment(topology),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            status, usage = _wait(process, dump, topology, start + timeout_seconds)
            end = time.monotonic()
            log.seek(0)
            said = log.read()
        if status and not (_assigned(dump) or _OUT_OF_MEMORY in said):
            raise UserError(f"{name} on {topology.label}: {_reason(said, status)}")
        if not dump.exists():
            return None
        lowering, lowered = json.loads((Path(directory) / _LOWERED).read_text())
        text = _read(dump, _PROGRAM)
        decode_steps = config.sampling.max_new_tokens if name == "rollout" else 1
        return Compiled(
            name,
            buffers.memory(_read(dump, _ASSIGNMENT), text),
            tuple(hlo.collectives(text, unknown_trips=decode_steps)),
            lowered - lowering,
            end - lowered,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * 1024,
        )


def environment(topology: Topology) -> dict[str, str]:
    """The environment of a process that compiles for the slice.

    Raises `UserError` where the platform's compiler is not installed.
    """
    if topology.platform == "tpu":
        if not tpu_schedule.available():
            raise UserError(f"{topology.label} {tpu_schedule.REMEDY}")
        return tpu_schedule.environment()
    if topology.platform == "gpu":
        if not gpu_compiler.available():
            raise UserError(f"{topology.label} {gpu_compiler.REMEDY}")
        return gpu_compiler.environment()
    devices = f"--xla_force_host_platform_device_count={topology.count}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {devices}"  # the last of two holds
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache leaves no listing
        "XLA_FLAGS": flags,
    }


def devices(topology: Topology) -> list[jax.Device]:
    """The slice's devices, to compile for; the process must be in `environment`."""
    if topology.platform == "cpu":
        return jax.devices()
    if topology.platform == "gpu":
        return gpu_compiler.h100s(topology.name)
    # Else libtpu takes the two cores of a v4 for two devices.
    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    return topologies.get_topology_desc(
        topology_name=topology.name, platform="tpu", **options
    ).devices


def mesh_of(config: TrainConfig, topology: Topology) -> Mesh:
    """The config's mesh on the slice."""
    return make_mesh(config.mesh, list(devices(topology)))


def _wait(
    process: subprocess.Popen, dump: Path, topology: Topology, end: float
) -> tuple[int, resource.struct_rusage]:
    """Waits until the program is compiled far enough: exit status and what the process used."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if (topology.platform != "cpu" and _assigned(dump)) or time.monotonic() > end:
            process.kill()
        time.sleep(POLL_SECONDS)


def _assigned(dump: Path) -> bool:
    """Whether the listings of buffers are written, and to their end."""
    found = [list(dump.glob(pattern)) for pattern in (_ASSIGNMENT, _PROGRAM)]
    written = [path.stat().st_mtime for paths in found for path in paths]
    return all(found) and time.time() - max(written) > 1


def _read(dump: Path, pattern: str) -> str:
    """The listing of the program, the largest of those of one kind."""
    return max(dump.glob(pattern), key=lambda path: path.stat().st_size).read_text()


def _reason(log: str, status: int) -> str:
    """The last line of a traceback, or what else there is to say."""
    lines = [line for line in log.splitlines() if "Error" in line or "RESOURCE_EXHAUSTED" in line]
    if lines:
        return lines[-1].partition(": ")[2] or lines[-1]
    return f"the compiler ended with status {status}: {log.strip()[-300:]}"


def _compile(directory: Path) -> None:
    """In the process of its own: compiles what `request.json` asks for into `dump`."""
    request: dict[str, Any] = json.loads((directory / "request.json").read_text())
    config = configs.from_dict(TrainConfig, request["config"])
    topology = parse_topology(request["topology"])
    mesh = mesh_of(config, topology)
    start = time.monotonic()
    program = lower(request["name"], config, mesh, topology.chip.hbm_bytes)
    (directory / _LOWERED).write_text(json.dumps([start, time.monotonic()]))
    if program is not None:
        program.compile({"xla_dump_to": str(directory / "dump"), "xla_dump_hlo_as_text": True})


if __name__ == "__main__":
    _compile(Path(sys.argv[1]))
