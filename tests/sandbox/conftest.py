"""Each test that asks for `kind` runs under every confinement that works here."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmrl.sandbox import kinds


@pytest.fixture(params=["bubblewrap", "landlock", "user"])
def kind(request, monkeypatch):
    if reason := kinds.obstacle(request.param):
        pytest.skip(reason)
    monkeypatch.setenv("MMRL_SANDBOX", request.param)
    return request.param


@pytest.fixture
def open_folder():
    """A folder that every user may read and write; what holds here does not hold by modes alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture
def victim():
    """A process of the user who runs the tests."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()
