"""A run on a mesh whose sampler has another layout is the run of a mesh where it has the same."""

import json
from dataclasses import replace

import pytest

from mmrl import config as configs
from mmrl.sharding import MeshConfig
from mmrl.train import train

from .conftest import CONFIG


@pytest.mark.slow
def test_two_steps_with_fsdp_and_tensor_parallelism_are_those_of_data_parallelism(
    data_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(data_file.parent)
    config = replace(configs.load(CONFIG), steps=2)
    meshes = {"data": MeshConfig(data=8), "cut": MeshConfig(data=2, fsdp=2, tensor=2)}
    rows = {}
    for name, mesh in meshes.items():
        assert train(replace(config, mesh=mesh), tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [row for row in map(json.loads, lines) if row["phase"] == "rl" and row["step"]]
    for data, cut in zip(rows["data"], rows["cut"], strict=True):
        assert cut["reward/mean"] == data["reward/mean"]
        assert cut["loss/total"] == pytest.approx(data["loss/total"], rel=1e-3, abs=1e-5)
        assert cut["grad/norm"] == pytest.approx(data["grad/norm"], rel=1e-3)
        assert cut["logprob/abs_diff_max"] < 1e-5
        assert cut["time/reshard_seconds"] > 0
