"""Whole runs on meshes that cut parameters, rows and heads give the run of one device."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from mmrl import config as configs
from mmrl import train as train_binary
from mmrl.sharding import MeshConfig, make_mesh

COMPARED = ("loss/supervised", "loss/total", "grad/norm", "eval/reward", "reward/mean")


def rows(monkeypatch, directory, mesh: MeshConfig, devices: int) -> list[dict]:
    """Metrics of a warm start and two RL steps of two updates each, on the first `devices`."""
    monkeypatch.chdir(directory)
    lines = [json.dumps({"prompt": f"{letter}>", "label": letter}) for letter in "abcd" * 4]
    (directory / "data.jsonl").write_text("\n".join(lines))
    config = configs.load(Path(__file__).parents[1] / "configs" / "copy_letter.py")
    config = dataclasses.replace(config, mesh=mesh, steps=2)
    monkeypatch.setattr(
        train_binary, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:devices])
    )
    workdir = directory / f"{devices}"
    train_binary.train(config, workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_on_a_mesh_of_eight_devices_is_the_run_of_one(monkeypatch, tmp_path):
    # The only expert of a token has weight 1 and its router no gradient, which Adam with the
    # paper's epsilon of 1e-15 must not find in the rounding.
    expected = rows(monkeypatch, tmp_path, MeshConfig(data=1), 1)
    found = rows(monkeypatch, tmp_path, MeshConfig(data=2, fsdp=2, tensor=2), 8)
    assert [row["phase"] for row in found] == ["warmstart"] * 3 + ["rl"] * 3
    for one, many in zip(expected, found, strict=True):
        for name in COMPARED:
            assert (name in one) == (name in many)
            if name in one:
                assert many[name] == pytest.approx(one[name], rel=2e-4, abs=2e-5), (name, one)
