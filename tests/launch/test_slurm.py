"""Batch scripts: their options are sbatch's, words arrive, signals are passed on, jobs requeue."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import launch_sbatch
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launch_tools import (
    AWKWARD,
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

from launch import slurm
from mmrl.errors import UserError

JOBS = {
    "plain": gpu_job(storage=None),
    "pyxis": gpu_job(container="pyxis"),
    "apptainer": gpu_job(container="apptainer"),
    "all options": gpu_job(
        topology="h200:4",
        partition="gpu,long",
        account="team",
        qos="high",
        reservation="r1",
        hours=36.5,
    ),
}
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def write(tmp_path: Path, job) -> Path:
    script = tmp_path / "job.sbatch"
    script.write_text(slurm.render(job))
    return script


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_script_passes_bash_shellcheck_and_sbatch(job, tmp_path):
    script = write(tmp_path, job)
    assert shell_errors(script.read_text(), tmp_path) == ""
    sbatch = Path(launch_sbatch.__file__)
    program(tmp_path, "sbatch", f"""exec '{sys.executable}' '{sbatch}' "$@" """)
    done = subprocess.run(
        ["sbatch", "--test-only", str(script)],
        env=on_path(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    ["--job-nam=x", "--nodes=two", "--signal=B:TERM@99999", "--requeue=yes", "--time=1h", "-x y"],
)
def test_sbatch_refuses_what_the_real_one_would(line):
    with pytest.raises(ValueError):
        launch_sbatch.directives(f"#!/bin/bash\n#SBATCH {line}\n")


def test_one_process_a_gpu_on_whole_machines():
    options = launch_sbatch.directives(slurm.render(gpu_job(hours=36.5)))
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == (
        *("2", "8", "8"),
    )
    assert "exclusive" in options and options["time"] == "2190"
    few = launch_sbatch.directives(slurm.render(gpu_job(topology="h100:4")))
    assert (few["nodes"], few["gpus-per-node"]) == ("1", "4") and "exclusive" not in few


def test_the_batch_shell_gets_sigterm_within_the_grace_period_and_may_be_queued_again():
    options = launch_sbatch.directives(slurm.render(gpu_job(grace_seconds=240)))
    assert options["signal"] == "B:TERM@240"
    assert "requeue" in options and options["open-mode"] == "append"


def test_every_word_and_variable_arrives_as_it_was_written(tmp_path):
    job = gpu_job(storage=None)
    record = recorder(tmp_path / "bin", "python")
    program(tmp_path / "bin", "srun", 'while [[ $1 == -* ]]; do shift; done; exec "$@"')
    done = bash(write(tmp_path, job), tmp_path / "bin", SLURM_JOB_ID="7")
    assert done.returncode == 0, done.stderr
    assert recorded(record) == (trainer_arguments(job), job.environment["NOTE"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), TEXT | st.sampled_from(AWKWARD)))
def test_every_override_arrives_as_it_was_written(tmp_path, overrides):
    job = gpu_job(storage=None, overrides=overrides, environment={})
    record = recorder(tmp_path / "bin", "srun")
    done = bash(write(tmp_path, job), tmp_path / "bin", SLURM_JOB_ID="7")
    assert done.returncode == 0, done.stderr
    words, _ = recorded(record)
    assert words[words.index("python") + 1 :] == trainer_arguments(job)


@pytest.mark.parametrize("container", ["pyxis", "apptainer"])
def test_a_container_mounts_the_storage_and_runs_the_trainer(container, tmp_path):
    job = gpu_job(container=container, storage="/lustre/team", environment={})
    record = recorder(tmp_path / "bin", "srun")
    assert bash(write(tmp_path, job), tmp_path / "bin", SLURM_JOB_ID="7").returncode == 0
    words, _ = recorded(record)
    before = words[: words.index("python")]
    assert words[words.index("python") + 1 :] == trainer_arguments(job)
    if container == "pyxis":
        assert "--container-image=europe-docker.pkg.dev#project/images/mmrl:1" in before
        assert "--container-mounts=/lustre/team:/storage" in before
        assert any("XLA_FLAGS" in word for word in before if word.startswith("--container-env="))
    else:
        assert before[-5:] == ["apptainer", "exec", "--nv", "--bind=/lustre/team:/storage",
                               f"docker://{job.image}"]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (143, 0, True), (134, 2, True), (1, 0, True), (143, 3, False)],
)
def test_what_a_restart_can_continue_is_queued_again_so_often_at_most(
    status, restarts, again, tmp_path
):
    programs = tmp_path / "bin"
    program(programs, "srun", f"exit {status}")
    record = recorder(programs, "scontrol")
    script = write(tmp_path, gpu_job(max_restarts=3))
    done = bash(script, programs, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == status
    assert record.exists() == again
    if again:
        assert recorded(record)[0] == ["requeue", "77"]


def test_sigterm_to_the_batch_shell_alone_stops_the_trainer_once_and_waits_for_it(tmp_path):
    """A trainer that takes a second to save; its status, not the signal's, decides."""
    programs = tmp_path / "bin"
    pid, log = tmp_path / "pid", tmp_path / "signals"
    trainer = "trap 'echo TERM >> {log}; sleep 1; exit 143' TERM; echo $$ > {pid}.part; "
    trainer += "mv {pid}.part {pid}; while true; do sleep 0.05; done"
    program(programs, "srun", trainer.format(log=log, pid=pid))
    program(programs, "scancel", f'echo "$@" >> {tmp_path}/scancel; kill -TERM "$(cat {pid})"')
    record = recorder(programs, "scontrol")
    process = subprocess.Popen(
        ["bash", str(write(tmp_path, gpu_job()))],
        env=on_path(programs, SLURM_JOB_ID="77"),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not pid.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()
    assert log.read_text().splitlines() == ["TERM"]
    assert (tmp_path / "scancel").read_text().split() == ["--signal=TERM", "77"]
    assert recorded(record)[0] == ["requeue", "77"]


@pytest.mark.parametrize("image", ["/images/mmrl.sqsh", "./mmrl.sqsh", "ubuntu:24.04"])
def test_a_file_or_an_image_of_the_default_registry_stays_as_it_is(image):
    assert f"--container-image={image}" in slurm.container(gpu_job(container="pyxis", image=image))


def test_what_slurm_cannot_do_is_an_error():
    with pytest.raises(UserError, match="slurm starts GPU jobs"):
        slurm.render(tpu_job())
    with pytest.raises(UserError, match="by job.partition or job.qos"):
        slurm.render(gpu_job(spot=True))
    with pytest.raises(UserError, match="job.image is not set"):
        slurm.render(gpu_job(container="pyxis", image=None))
