"""The start-up script is sound bash, and what it installs runs the trainer with its words."""

import configparser
import subprocess
from pathlib import Path

import pytest
from launch_tools import (
    bash,
    gpu_job,
    on_path,
    program,
    recorded,
    recorder,
    shell_errors,
    tpu_job,
    trainer_arguments,
)

from launch import queued_resources
from mmrl.errors import UserError

NFS = "10.0.0.2:/share"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A directory of programs that do nothing to this machine."""
    programs = tmp_path / "bin"
    for name in ("mount", "mount.nfs", "apt-get", "gcloud", "systemctl"):
        recorder(programs, name)
    program(programs, "mountpoint", "exit 1")
    return programs


def booted(job, tmp_path: Path, machine: Path) -> tuple[Path, Path]:
    """Runs the script with its paths moved under `tmp_path`; gives the run script and the unit."""
    text = queued_resources.startup_script(job)
    moved = text.replace("/opt/mmrl", f"{tmp_path}/opt").replace("/etc/systemd", f"{tmp_path}/etc")
    (tmp_path / "etc" / "system").mkdir(parents=True)
    (tmp_path / "startup.sh").write_text(moved)
    done = bash(tmp_path / "startup.sh", machine)
    assert done.returncode == 0, done.stderr
    return tmp_path / "opt" / "run.sh", tmp_path / "etc" / "system" / f"{job.name}.service"


@pytest.mark.parametrize("changes", [{}, {"slices": 2, "spot": True}, {"image": "mmrl"}])
def test_the_script_passes_bash_and_shellcheck(changes, tmp_path):
    script = queued_resources.startup_script(tpu_job(storage=NFS, **changes))
    assert shell_errors(script, tmp_path) == ""


def test_every_word_and_variable_arrives_as_it_was_written(tmp_path, machine):
    job = tpu_job(
        storage=NFS, storage_path=str(tmp_path / "mnt"), workdir=f"{tmp_path}/mnt/it's $HOME"
    )
    run, _ = booted(job, tmp_path, machine)
    record = recorder(machine, "docker")
    assert shell_errors(run.read_text(), tmp_path) == ""
    subprocess.run(["bash", str(run)], env=on_path(machine), check=True, timeout=60)
    words, _ = recorded(record)
    image = words.index(job.image)
    assert words[image + 1 :] == ["python", *trainer_arguments(job)]
    assert f"--env=NOTE={job.environment['NOTE']}" in words[:image]
    assert f"--volume={tmp_path}/mnt:{tmp_path}/mnt" in words[:image]


def test_the_storage_is_mounted_before_the_service_starts(tmp_path, machine):
    mount = tmp_path / "mnt"
    job = tpu_job(storage=NFS, storage_path=str(mount), workdir=f"{mount}/run")
    _, unit = booted(job, tmp_path, machine)
    assert recorded(machine / "mount.arguments")[0] == [
        *("-t", "nfs", "-o", "hard", NFS, str(mount))
    ]
    assert recorded(machine / "systemctl.arguments")[0] == ["start", "--no-block", unit.name]
    assert recorded(machine / "gcloud.arguments")[0] == [
        *("auth", "configure-docker", "--quiet", "europe-docker.pkg.dev")
    ]


def test_the_service_gives_the_grace_period_and_starts_again_but_after_a_mistake(tmp_path, machine):
    job = tpu_job(storage=NFS, storage_path=str(tmp_path / "mnt"), workdir=f"{tmp_path}/mnt/run")
    _, path = booted(job, tmp_path, machine)
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(path)
    assert unit["Service"]["TimeoutStopSec"] == str(job.grace_seconds)
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"] == "2"
    assert unit["Unit"]["StartLimitBurst"] == str(job.max_restarts + 1)
    assert "docker.service" in unit["Unit"]["After"]
    assert unit["Service"]["ExecStart"] == f"/bin/bash {tmp_path}/opt/run.sh"


def test_the_request_names_the_slice_and_gives_it_back():
    """Options as `gcloud alpha compute tpus queued-resources create --help` lists them."""
    one = queued_resources.create(tpu_job(storage=NFS), "s.sh")
    assert one[:6] == ["gcloud", "alpha", "compute", "tpus", "queued-resources", "create"]
    assert {
        "--node-id=words",
        "--type=v5p",
        "--topology=4x4x4",
        "--runtime-version=v2-alpha-tpuv5",
        "--metadata-from-file=startup-script=s.sh",
    } < set(one)
    two = queued_resources.create(tpu_job(storage=NFS, slices=2, topology="v5e:4x4"), "s.sh")
    assert {"--node-count=2", "--node-prefix=words", "--type=v5litepod"} < set(two)
    assert not any(word.startswith("--node-id") for word in two)
    assert queued_resources.delete(tpu_job())[5:7] == ["delete", "words"]


def test_what_queued_resources_cannot_do_is_an_error():
    with pytest.raises(UserError, match="starts TPU jobs"):
        queued_resources.startup_script(gpu_job(storage=NFS))
    with pytest.raises(UserError, match="mounts an NFS export, as in 10.0.0.2:/share"):
        queued_resources.startup_script(tpu_job(storage="claim"))
    with pytest.raises(UserError, match="run until they are deleted"):
        queued_resources.startup_script(tpu_job(storage=NFS, hours=2.0))
