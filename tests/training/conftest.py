"""The run that the trainer's tests share: its data file, and how to start it as a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from subprocesses import TESTS, environment
from tiny_run import one_device

ROOT = TESTS.parent
CONFIG = TESTS / "configs" / "copy_letter.py"


@pytest.fixture(autouse=True)
def first_device():
    """Runs in this process are on one device; `test_mesh.py` has one on eight."""
    with one_device():
        yield


@pytest.fixture
def data_file(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{letter}>", "label": letter} for letter in "abcd"] * 4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start(data_file):
    """Starts `python -m mmrl.train` on the copy task, with overrides, as a process of its own."""

    def start(workdir: Path, *overrides: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "mmrl.train", f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.{override}" for override in overrides]
        return subprocess.Popen(
            command,
            cwd=data_file.parent,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
