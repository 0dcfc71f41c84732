"""GPUs of a SLURM cluster: a batch script for `sbatch`, with or without containers.

One process a GPU, which is what jax's own detection of SLURM expects: it takes the GPU of its local
number, so all GPUs of a node must be visible to all its processes (no --gpus-per-task).
"""

from launch import google, platform_flags, shell
from launch.job import USER_ERROR_EXIT_STATUS, Job, require, require_platform
from mmrl.errors import UserError

_SCRIPT = """\
#!/usr/bin/env bash
{directives}
set -uo pipefail
{exports}
set -- {command}

# SLURM signals this shell alone; scancel signals the processes of the step and not this shell.
signalled=
trap 'signalled=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
srun --kill-on-bad-exit=1 --cpu-bind=none "$@" &
step=$!
wait "$step"
status=$?
while [[ -n "$signalled" ]]; do
  signalled=
  wait "$step"
  status=$?
done

# The same command continues from the last checkpoint.
restarts=${{SLURM_RESTART_COUNT:-0}}
if ((status != 0 && status != {final} && restarts < {max_restarts})); then
  echo "Ended with status $status; queued again ($restarts restarts before)." >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def render(job: Job) -> str:
    """The batch script. Raises `UserError` for what the job leaves open."""
    require(job, "slurm", *(["image"] if job.container else []))
    require_platform(job, "slurm", "gpu")
    if job.spot:
        raise UserError("job.spot: SLURM chooses such machines by job.partition or job.qos")
    variables = platform_flags.environment(job)
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {option}" for option in options(job)),
        exports="\n".join(
            f"export {name}={shell.quote(value)}" for name, value in variables.items()
        ),
        command=shell.join([*container(job), *job.command()]),
        final=USER_ERROR_EXIT_STATUS,
        max_restarts=job.max_restarts,
    )


def options(job: Job) -> list[str]:
    """sbatch's options, none of which needs quotes."""
    nodes, gpus = google.hosts(job.shape)
    named = {
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "reservation": job.reservation,
    }
    return [
        f"--job-name={job.name}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={gpus}",
        f"--gpus-per-node={gpus}",
        *(["--exclusive", "--mem=0"] if gpus == job.shape.chip.per_host else []),
        *(f"--{name}={value}" for name, value in named.items() if value),
        *([f"--time={_minutes(job.hours)}"] if job.hours is not None else []),
        f"--signal=B:TERM@{job.grace_seconds}",
        "--requeue",
        "--open-mode=append",
        f"--output={job.name}-%j.log",
    ]


def container(job: Job) -> list[str]:
    """What comes before the trainer's command: options of srun (pyxis) or apptainer itself."""
    mounts = f"{job.storage}:{job.storage_path}" if job.storage else ""
    if job.container == "pyxis":
        # An image's own variables would win over those of the same name.
        names = ",".join(platform_flags.environment(job))
        return [
            f"--container-image={_enroot(job.image or '')}",
            *([f"--container-mounts={mounts}"] if mounts else []),
            *([f"--container-env={names}"] if names else []),
        ]
    if job.container == "apptainer":
        return [
            *("apptainer", "exec", "--nv"),
            *([f"--bind={mounts}"] if mounts else []),
            _apptainer(job.image or ""),
        ]
    return []


def _enroot(image: str) -> str:
    """As pyxis names an image: REGISTRY#NAME:TAG, or the path of a file."""
    registry, slash, name = image.partition("/")
    return f"{registry}#{name}" if slash and "." in registry.strip(".") else image


def _apptainer(image: str) -> str:
    """As apptainer names an image: docker://NAME:TAG, or the path of a .sif file."""
    return image if "://" in image or image.endswith(".sif") else f"docker://{image}"


def _minutes(hours: float) -> int:
    return max(round(hours * 60), 1)
