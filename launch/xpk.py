"""TPUs on GKE as the JobSet that xpk (github.com/AI-Hypercomputer/xpk, 1.16) makes and queues."""

from launch import google, platform_flags, shell
from launch.job import Job, require, require_platform
from mmrl.errors import UserError


def command(job: Job) -> list[str]:
    """`xpk workload create …`. Raises `UserError` for what the job leaves open."""
    require(job, "xpk", "image", "storage", "cluster", "project", "zone")
    require_platform(job, "xpk", "tpu")
    if job.hours is not None:
        raise UserError("job.hours: xpk has no limit of time; use --target=jobset")
    tpu = google.TPUS[job.shape.chip.name]
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={job.name}",
        f"--cluster={job.cluster}",
        f"--project={job.project}",
        f"--zone={job.zone}",
        f"--tpu-type={tpu.kind}-{google.shape_name(job.shape)}",
        f"--num-slices={job.slices}",
        f"--docker-image={job.image}",
        f"--storage={job.storage}",
        f"--max-restarts={job.max_restarts}",
        # It restarts on 42 and 127 to 255 by itself; 1 is an uncaught error, as of a lost process.
        "--restart-on-exit-codes=1",
        # Its wrapper looks for the signal every 5 s.
        f"--termination-grace-period-seconds={job.grace_seconds + 10}",
        *(["--spot"] if job.spot else []),
        *([f"--reservation={job.reservation}"] if job.reservation else []),
        f"--command={container_command(job)}",
    ]


def container_command(job: Job) -> str:
    """What xpk pastes into `bash -c` within the manifest, in one line.

    `exec` leaves no shell between xpk's wrapper, which forwards SIGTERM to its child, and the
    trainer. The environment is part of it since xpk does not quote `--env`. Kubernetes, which
    expands $(NAME) in commands, takes $$ for a dollar.
    """
    variables = platform_flags.environment(job)
    words = [f"{name}={value}" for name, value in variables.items()]
    return f"exec env {shell.join(words + job.command())}".replace("$", "$$")
