"""Prints or submits a job: its files, and the command that hands them over.

    python -m launch.submit --target=slurm --job=job.py --dry_run
    python -m launch.submit --target=jobset --job.name=m1 --job.topology=v5p:4x4x4 \\
        --job.config=configs/m1.py --job.workdir=/storage/m1 --job.storage=runs --job.image=IMAGE \\
        --config.optimizer.learning_rate=1e-6 --dry_run

A job file is Python whose `get_job()` returns a `launch.job.Job`. `--job.KEY=VALUE` sets a field of
it, `--config.KEY=VALUE` is passed to the trainer. `launch.local` starts processes of this machine.
"""

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from launch import jobset, queued_resources, shell, slurm, xpk
from launch.job import Job
from mmrl import config as configs
from mmrl.errors import UserError


class Submission(NamedTuple):
    """`files` {name: text} to write, `command` to run then, `afterwards` a command to know."""

    files: dict[str, str]
    command: list[str]
    afterwards: list[str] | None = None


def _jobset(job: Job) -> Submission:
    name = f"{job.name}.yaml"
    return Submission({name: jobset.render(job)}, ["kubectl", "apply", f"--filename={name}"])


def _xpk(job: Job) -> Submission:
    return Submission({}, xpk.command(job))


def _queued_resources(job: Job) -> Submission:
    name = f"{job.name}-startup.sh"
    return Submission(
        {name: queued_resources.startup_script(job)},
        queued_resources.create(job, name),
        queued_resources.delete(job),
    )


def _slurm(job: Job) -> Submission:
    name = f"{job.name}.sbatch"
    return Submission({name: slurm.render(job)}, ["sbatch", name])


TARGETS: dict[str, Callable[[Job], Submission]] = {
    "jobset": _jobset,
    "xpk": _xpk,
    "queued_resources": _queued_resources,
    "slurm": _slurm,
}
# cloud.google.com/kubernetes-engine/docs/how-to/preemptible-vms
_SPOT = (
    "Google takes a spot machine away 30 s after its notice (GKE leaves pods 15 s of them), "
    "whatever job.grace_seconds says: steps since the last checkpoint may be lost."
)
_TARGET = flags.DEFINE_enum("target", None, list(TARGETS), "Where to run.", required=True)
_JOB = flags.DEFINE_string("job", None, "Job file: Python with get_job().")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the files and the command only.")
_OUTPUT = flags.DEFINE_string("output", ".", "Directory of the files.")


def load(path: str | None, changes: dict[str, str], overrides: dict[str, str]) -> Job:
    """The job of a file, or an empty one, with `changes` of its fields and trainer overrides."""
    job = configs.load(path, "job") if path else Job()
    if not isinstance(job, Job):
        raise UserError(f"{path}: get_job() must return a launch.job.Job")
    job = configs.override(job, changes, "job")
    return dataclasses.replace(job, overrides=job.overrides | overrides)


def main(argv: list[str], changes: dict[str, str], overrides: dict[str, str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    job = load(_JOB.value, changes, overrides)
    submission = TARGETS[_TARGET.value](job)
    if _DRY_RUN.value:
        for name, text in submission.files.items():
            print(f"# {name}\n{text}")
    if job.spot:
        print(f"# {_SPOT}")
    print(f"# {job.cost()}\n{shell.join(submission.command)}")
    if submission.afterwards:
        print(f"# To give the machines back:\n# {shell.join(submission.afterwards)}")
    if _DRY_RUN.value:
        return
    directory = Path(_OUTPUT.value)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in submission.files.items():
        (directory / name).write_text(text)
    try:
        status = subprocess.run(submission.command, cwd=directory, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(f"{submission.command[0]} is not installed here; see --dry_run") from error
    sys.exit(status)


def run() -> None:
    """`main`, with `--job.…` and `--config.…` taken out before absl parses the rest."""
    try:
        argv, changes = configs.split_argv(sys.argv, "job")
        argv, overrides = configs.split_argv(argv)
        app.run(functools.partial(main, changes=changes, overrides=overrides), argv=argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
