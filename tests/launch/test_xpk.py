"""xpk's options are xpk's, and its wrapper passes words and SIGTERM to the trainer itself."""

import argparse
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from launch_tools import (
    gpu_job,
    kubernetes_expand,
    on_path,
    program,
    recorded,
    recorder,
    tpu_job,
    trainer_arguments,
)

from launch import xpk
from mmrl.errors import UserError


def parsed(words: list[str]) -> argparse.Namespace:
    """`xpk workload create` with xpk 1.16's option names and types; refuses others."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name in ("workload", "cluster", "project", "zone", "tpu-type", "docker-image", "command"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num-slices", type=int)
    parser.add_argument("--storage", action="append")
    for name in ("max-restarts", "restart-on-exit-codes", "termination-grace-period-seconds"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("--reservation")
    assert words[:3] == ["xpk", "workload", "create"]
    return parser.parse_args(words[3:])


def wrapper(command: str, variables: dict[str, str]) -> str:
    """The pod's script: the command pasted into a block of YAML, as xpk does, then Kubernetes."""
    script = f"""
        _sigterm() (kill -SIGTERM $! 2>/dev/null;);
        trap _sigterm SIGTERM;
        ({command}) & PID=$!;
        while kill -0 $PID 2>/dev/null; do sleep 0.1; done;
        wait $PID;
        exit $?
    """
    block = textwrap.indent(textwrap.dedent(script).strip(), " " * 18)
    text = yaml.safe_load(f"container:\n  command:\n    - |\n{block}\n")["container"]["command"][0]
    return kubernetes_expand(text, variables)


def test_options_are_those_of_xpk():
    options = parsed(xpk.command(tpu_job(slices=2, spot=True, grace_seconds=60, max_restarts=4)))
    assert (options.tpu_type, options.num_slices, options.spot) == ("v5p-4x4x4", 2, True)
    assert options.max_restarts == "4" and options.storage == ["runs"]
    assert int(options.termination_grace_period_seconds) > 60
    assert parsed(xpk.command(tpu_job(topology="v5e:4x4"))).tpu_type == "v5litepod-4x4"


def test_every_word_and_variable_arrives_as_it_was_written(tmp_path: Path):
    job = tpu_job()
    record = recorder(tmp_path, "python")
    command = parsed(xpk.command(job)).command
    script = wrapper(command, {"JAX_COMPILATION_CACHE_DIR": "expanded"})
    done = subprocess.run(
        ["bash", "-c", script], env=on_path(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert recorded(record) == (trainer_arguments(job), job.environment["NOTE"])


def test_sigterm_to_the_wrapper_reaches_the_trainer(tmp_path: Path):
    ready = tmp_path / "ready"
    program(
        tmp_path,
        "python",
        f"trap 'exit 143' TERM; touch '{ready}'; while true; do sleep 0.05; done",
    )
    script = wrapper(parsed(xpk.command(tpu_job())).command, {})
    process = subprocess.Popen(["bash", "-c", script], env=on_path(tmp_path))
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()


def test_what_xpk_cannot_do_is_an_error():
    with pytest.raises(UserError, match="xpk starts TPU jobs"):
        xpk.command(gpu_job())
    with pytest.raises(UserError, match="job.cluster is not set; xpk needs it: --job.cluster="):
        xpk.command(tpu_job(cluster=None))
    with pytest.raises(UserError, match="job.hours: xpk has no limit of time"):
        xpk.command(tpu_job(hours=1.0))
