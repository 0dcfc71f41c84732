"""Every flag exists in the installed compilers, has a reason and stands in one file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch_tools import gpu_job, tpu_job

from launch import platform_flags
from launch.platform_flags import GPU, GPU_MANY_A_PROCESS, TPU, TPU_SLICES

ROOT = Path(__file__).parents[2]
ALL = (*TPU, *TPU_SLICES, *GPU, *GPU_MANY_A_PROCESS)
XLA = "import jax; jax.devices()"
# Parsed when libtpu is loaded, which needs no chip.
LIBTPU = """
from jax.experimental import topologies
topologies.get_topology_desc(topology_name="v5p:2x2x1", platform="tpu")
"""


def starts(program: str, variable: str, text: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        variable: text,
    }
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=120
    )


@pytest.mark.parametrize(
    ("program", "variable", "flags", "unknown"),
    [
        (XLA, "XLA_FLAGS", GPU + GPU_MANY_A_PROCESS, "--xla_gpu_enable_nothing=true"),
        (LIBTPU, "LIBTPU_INIT_ARGS", TPU + TPU_SLICES, "--xla_tpu_enable_nothing=true"),
    ],
)
def test_the_compiler_knows_every_flag_and_would_refuse_another(program, variable, flags, unknown):
    text = " ".join(f"--{f.name}={f.value}" for f in flags if f.variable == variable)
    assert text
    done = starts(program, variable, text)
    assert done.returncode == 0, done.stderr
    assert starts(program, variable, f"{text} {unknown}").returncode != 0


def test_every_flag_has_a_reason_and_a_source():
    assert all(flag.reason and flag.source for flag in ALL)
    assert len({(flag.variable, flag.name) for flag in ALL}) == len(ALL)


def test_flags_stand_in_one_file():
    pattern = re.compile(r"xla_(gpu|tpu)_\w+|NCCL_[A-Z]\w+")
    named = [p.name for p in (ROOT / "launch").iterdir() if p.is_file()
             and pattern.search(p.read_text())]  # fmt: skip
    assert named == ["platform_flags.py"]


def test_the_jobs_own_flags_are_appended_and_its_variables_win():
    job = gpu_job(environment={"XLA_FLAGS": "--xla_dump_to=/tmp/x", "NCCL_DEBUG": "INFO",
                               "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.8"})  # fmt: skip
    variables = platform_flags.environment(job)
    assert variables["XLA_FLAGS"].startswith("--xla_gpu_enable_latency_hiding_scheduler=true ")
    assert variables["XLA_FLAGS"].endswith(" --xla_dump_to=/tmp/x")
    assert variables["NCCL_DEBUG"] == "INFO"
    assert variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.8"


def test_a_platform_gets_its_own_flags_only():
    assert platform_flags.flags_for(tpu_job()) == TPU
    assert platform_flags.flags_for(tpu_job(slices=2)) == TPU + TPU_SLICES
    assert platform_flags.flags_for(tpu_job(topology="v6e:1x1")) == ()
    assert platform_flags.flags_for(gpu_job()) == GPU
    many = platform_flags.flags_for(gpu_job(), devices_per_process=8)
    assert many == GPU + GPU_MANY_A_PROCESS


def test_compiled_programs_outlive_a_machine_where_there_is_storage():
    variables = platform_flags.environment(tpu_job())
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "/storage/jax_cache"
    assert "JAX_COMPILATION_CACHE_DIR" not in platform_flags.environment(gpu_job(storage=None))
