"""`python -m launch.submit`: what it prints, writes and runs, and its errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launch_tools import program, recorded, recorder

ROOT = Path(__file__).parents[2]
FILE = """
from launch.job import Job

def get_job():
    return Job(
        name="run", config="configs/a.py", workdir="/storage/run", topology="h100:16",
        image="mmrl", storage="runs", price=3.0, hours=2.0, overrides={"steps": "10", "seed": "1"},
    )
"""


@pytest.fixture
def submit(tmp_path: Path):
    """Runs the binary with a job file and with `tmp_path/bin` first on PATH."""
    (tmp_path / "job.py").write_text(FILE)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "launch.submit", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_a_dry_run_prints_files_cost_and_command_and_touches_nothing(submit, tmp_path):
    record = recorder(tmp_path / "bin", "kubectl")
    before = sorted(tmp_path.iterdir())
    done = submit(
        *("--target=jobset", "--job=job.py", "--dry_run"),
        *("--job.topology=h100:8", "--config.steps=20", "--config.note=it's"),
    )
    assert done.returncode == 0, done.stderr
    text, _, rest = done.stdout.partition("\n# 8 h100: $24.00 an hour, $48.00 in 2 h\n")
    assert rest == "kubectl apply --filename=run.yaml\n"
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    words = pod["containers"][0]["command"]
    assert words[-3:] == ["--config.steps=20", "--config.seed=1", "--config.note=it's"]
    assert not record.exists() and sorted(tmp_path.iterdir()) == before


def test_a_submission_writes_the_files_and_runs_the_command(submit, tmp_path):
    record = recorder(tmp_path / "bin", "sbatch")
    done = submit("--target=slurm", "--job=job.py", "--job.partition=gpu", "--output=out")
    assert done.returncode == 0, done.stderr
    assert recorded(record)[0] == ["run.sbatch"]
    assert "#SBATCH --partition=gpu\n" in (tmp_path / "out" / "run.sbatch").read_text()


def test_the_submitters_exit_status_is_the_commands(submit, tmp_path):
    program(tmp_path / "bin", "sbatch", "exit 3")
    assert submit("--target=slurm", "--job=job.py").returncode == 3


def test_flags_alone_describe_a_job(submit):
    fields = {
        "name": "words",
        "config": "c.py",
        "workdir": "/storage/w",
        "topology": "v6e:4x4",
        "slices": "2",
        "storage": "10.0.0.2:/share",
        "image": "mmrl",
        "project": "p",
        "zone": "z",
        "environment": json.dumps({"A": "b"}),
    }
    flags = [f"--job.{name}={value}" for name, value in fields.items()]
    done = submit("--target=queued_resources", *flags, "--job.spot=true", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "takes a spot machine away 30 s after its notice" in done.stdout
    assert "--type=v6e --topology=4x4" in done.stdout
    assert "# To give the machines back:\n# gcloud alpha" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=slurm", "--job.topolgy=h100:8"], "job.topolgy does not exist. Did you mean"),
        (["--target=slurm"], "job.name is not set; slurm needs it: --job.name="),
        (["--target=slurm", "--job=none.py"], "no job file none.py"),
        (["--target=slurm", "--job=job.py", "--job.slices=x"], "job.slices: expected an int"),
        (["--target=xpk", "--job=job.py"], "job.cluster is not set; xpk needs it"),
        (["--target=slurm", "--job=job.py"], "sbatch is not installed here; see --dry_run"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(arguments, message, submit):
    done = submit(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
