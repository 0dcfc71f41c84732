"""A run directory of the copy task, and how its files are given to the binaries."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from subprocesses import TESTS, environment

from mmrl import config as configs
from mmrl.sharding import make_mesh
from mmrl.train import train


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Runs of the trainer in this process use its first device alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmrl.train.make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
        yield


def make_run(directory: Path, **changes) -> Path:
    """Trains for one step in `directory / "run"`, with its data beside it in `data.jsonl`."""
    data = directory / "data.jsonl"
    rows = [{"prompt": f"{letter}>", "label": letter} for letter in "abcd"] * 4
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.load(TESTS / "configs" / "copy_letter.py")
    config = replace(
        config,
        steps=1,
        warmstart=replace(config.warmstart, steps=0),
        data=replace(config.data, source=str(data)),
        evaluation=replace(
            config.evaluation, prompts=8, data=replace(config.evaluation.data, source=str(data))
        ),
        **changes,
    )
    with one_device():
        assert train(config, directory / "run")
    return directory / "run"


def run_module(name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    """`python -m NAME ARGUMENTS` on one device."""
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=TESTS.parent,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def start_module(name: str, *arguments: str) -> subprocess.Popen:
    """As `run_module`, but running, with its streams open."""
    return subprocess.Popen(
        [sys.executable, "-m", name, *arguments],
        cwd=TESTS.parent,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
