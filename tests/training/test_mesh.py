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
    # Adam divides by the root of the second moment, plus epsilon. With the paper's 1e-15 a gradient
    # that is rounding alone becomes a step of the whole learning rate, another on each mesh, until
    # a token flips. With 1e-3, rounding of some 1e-7 moves a parameter by 1e-4 of it.
    optimizer, warmstart = config.optimizer, config.warmstart
    config = dataclasses.replace(
        config,
        mesh=mesh,
        steps=2,
        optimizer=dataclasses.replace(optimizer, eps=1e-3),
        warmstart=dataclasses.replace(
            warmstart, optimizer=dataclasses.replace(warmstart.optimizer, eps=1e-3)
        ),
    )
    monkeypatch.setattr(
        train_binary, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:devices])
    )
    workdir = directory / f"{devices}"
    train_binary.train(config, workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_on_a_mesh_of_eight_devices_is_the_run_of_one(monkeypatch, tmp_path):
    expected = rows(monkeypatch, tmp_path, MeshConfig(data=1), 1)
    found = rows(monkeypatch, tmp_path, MeshConfig(data=2, fsdp=2, tensor=2), 8)
    assert [row["phase"] for row in found] == ["warmstart"] * 3 + ["rl"] * 3
    for one, many in zip(expected, found, strict=True):
        for name in COMPARED:
            assert (name in one) == (name in many)
            if name in one:
                assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (name, one)
        # Sampler and trainer say the same of a token.
        assert many.get("logprob/abs_diff_max", 0) < 1e-5, many
