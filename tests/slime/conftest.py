"""A tiny checkpoint in Hugging Face's form, and the files that slime's example commands name."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from byte_checkpoint import make_checkpoint
from tiny_run import one_device

REWARD = """
from slime.utils.types import Sample


async def agent_reward(args, sample: Sample, **kwargs) -> float:
    assert args.metadata_key == "tool_calls"
    wanted = len(sample.metadata["tool_calls"])
    return float(sample.tokens[-1] % 2 == wanted % 2)
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Qwen2's architecture with 258 tokens and one small layer."""
    return make_checkpoint(tmp_path_factory.mktemp("slime") / "model")


@pytest.fixture(autouse=True)
def first_device():
    with one_device():
        yield


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory: my.py and agent_trajectories.parquet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my.py").write_text(REWARD)
    calls = [{"name": "f", "arguments": json.dumps({"x": 1})}]
    rows = [{"input": f"call {n}", "tool_calls": calls * n} for n in (1, 2)] * 4
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "agent_trajectories.parquet")
    return tmp_path
