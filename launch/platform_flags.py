"""Flags of XLA, libtpu, NCCL and CUDA, each with its reason and source: the only place for them.

None has been timed with mmrl. They are what the compilers' makers recommend for sharded training;
a test passes every one to the installed compilers. `Job.environment` adds to them.
"""

from typing import Literal, NamedTuple

from launch.job import Job

_MAXTEXT = "MaxText e591f30, benchmarks/xla_flags_library.py"
_NVIDIA = "NVIDIA JAX-Toolbox, docs/GPU_performance.md"


class Flag(NamedTuple):
    """`variable` is the environment variable; `name` the flag in it, or "" if it is the value."""

    variable: Literal[
        "XLA_FLAGS",
        "LIBTPU_INIT_ARGS",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "NCCL_LAUNCH_MODE",
    ]
    name: str
    value: str
    reason: str
    source: str


def _libtpu(name: str, reason: str, source: str = _MAXTEXT) -> Flag:
    return Flag("LIBTPU_INIT_ARGS", name, "true", reason, source)


def _xla(name: str, value: str, reason: str, source: str = _NVIDIA) -> Flag:
    return Flag("XLA_FLAGS", name, value, reason, source)


# Every slice of more than one chip: all-gathers of FSDP parameters behind the products before them.
TPU = (
    _libtpu("xla_enable_async_all_gather", "All-gathers start early and end where needed"),
    _libtpu("xla_tpu_enable_async_collective_fusion", "Products run inside a collective's wait"),
    _libtpu(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather", "…for the all-gathers of FSDP"
    ),
    _libtpu("xla_tpu_enable_async_collective_fusion_multiple_steps", "…over several of its steps"),
    _libtpu("xla_tpu_overlap_compute_collective_tc", "The TensorCore computes meanwhile"),
)
# Slices joined over the data centre's network, whose gradients are summed there.
TPU_SLICES = (
    _libtpu("xla_tpu_enable_data_parallel_all_reduce_opt", "Gradients' sum over the slow network"),
    _libtpu("xla_tpu_data_parallel_opt_different_sized_ops", "…overlapped for all their sizes"),
)
GPU = (
    _xla("xla_gpu_enable_latency_hiding_scheduler", "true", "Collectives overlap with computation"),
    _xla("xla_gpu_enable_pipelined_all_gather", "true", "…across steps of the loop over layers"),
    _xla("xla_gpu_enable_pipelined_reduce_scatter", "true", "…likewise for gradients"),
    _xla("xla_gpu_enable_pipelined_all_reduce", "true", "…likewise for sums"),
    _xla(
        "xla_gpu_enable_while_loop_double_buffering",
        "true",
        "The next layer's parameters arrive in a second buffer, without copies",
    ),
    Flag(
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "",
        "0.9",
        "JAX takes 75 % by default; NCCL and CUDA's libraries need the rest",
        _NVIDIA,
    ),
    Flag(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "",
        "1",
        "Kernels start in XLA's order, which overlap relies on (Hopper and before)",
        _NVIDIA,
    ),
)
# One process drives all GPUs of a machine, as pods on GKE do.
GPU_MANY_A_PROCESS = (
    Flag(
        "NCCL_LAUNCH_MODE",
        "",
        "GROUP",
        "Else a synchronous CUDA call during a collective can hang the process",
        _NVIDIA,
    ),
    _xla(
        "xla_gpu_first_collective_call_terminate_timeout_seconds",
        "300",
        "Devices of a process start their first program minutes apart; the default is 40 s",
        "openxla/xla, xla/debug_options_flags.cc",
    ),
)


def flags_for(job: Job, *, devices_per_process: int = 1) -> tuple[Flag, ...]:
    """The flags of a job's platform; none for a single device."""
    if job.devices == 1:
        return ()
    if job.shape.platform == "tpu":
        return TPU + (TPU_SLICES if job.slices > 1 else ())
    return GPU + (GPU_MANY_A_PROCESS if devices_per_process > 1 else ())


def environment(job: Job, *, devices_per_process: int = 1) -> dict[str, str]:
    """Variables of the trainer: the platform's flags, then the job's own, appended to flags.

    With `storage`, compiled programs are kept there, so that a restart does not compile again.
    """
    variables: dict[str, str] = {}
    for flag in flags_for(job, devices_per_process=devices_per_process):
        text = f"--{flag.name}={flag.value}" if flag.name else flag.value
        variables[flag.variable] = f"{variables.get(flag.variable, '')} {text}".strip()
    if job.storage:
        variables["JAX_COMPILATION_CACHE_DIR"] = f"{job.storage_path.rstrip('/')}/jax_cache"
    for name, value in job.environment.items():
        appended = name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") and name in variables
        variables[name] = f"{variables[name]} {value}" if appended else value
    return variables
