"""A checkpoint in MiniMax-M1's names that the tests of loading and saving share."""

from pathlib import Path

import numpy as np
import pytest
from oracles import m1_checkpoint


@pytest.fixture(scope="session")
def m1_tensors() -> dict[str, np.ndarray]:
    return m1_checkpoint.tensors(m1_checkpoint.CONFIG)


@pytest.fixture
def m1_path(tmp_path, m1_tensors) -> Path:
    return m1_checkpoint.write(tmp_path / "m1", m1_checkpoint.CONFIG, m1_tensors)
