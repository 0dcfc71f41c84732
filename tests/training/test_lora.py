"""Runs with adapters: they learn, the base stands still, and a continued run is the same run."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl.models import LoraConfig
from mmrl.models.pretrained.orbax import load_run
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.train import train
from mmrl.training.config import TrainConfig
from mmrl.training.flops import step_flops
from mmrl.training.optimizer import OptimizerConfig
from mmrl.training.state import init_adapters, init_params, split_trained

CONFIG = Path(__file__).parents[1] / "configs" / "copy_letter.py"
# qkv, output_gate and o of the lightning layer, q, k, v and o of the other, and both MLPs' three.
ADAPTERS = 3 + 4 + 2 * 3


@pytest.fixture
def config(data_file, monkeypatch) -> TrainConfig:
    """The copy task by a dense model with adapters wherever one may be."""
    monkeypatch.chdir(data_file.parent)
    config = configs.load(CONFIG)
    model = replace(config.model, num_experts=0, lora=LoraConfig(rank=8, alpha=16.0))
    return replace(config, model=model, evaluation=replace(config.evaluation, interval=100))


def rows(workdir: Path, phase: str) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["phase"] == phase]


def arrays(workdir: Path, part: str) -> dict[tuple, np.ndarray]:
    """A part of the newest checkpoint's state, by path; its scalars left out."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())
    flat = ocp.tree.to_flat_dict({part: state[part]})
    # Orbax writes a Variable as {"value": array}.
    return {path[1:-1]: np.asarray(x) for path, x in flat.items() if getattr(x, "ndim", 0)}


@pytest.mark.slow
def test_adapters_learn_to_copy_by_cispo_alone_with_sampler_and_trainer_in_step(config, tmp_path):
    config = replace(config, steps=40, warmstart=replace(config.warmstart, steps=0))
    assert train(config, tmp_path / "run")
    before, *steps = rows(tmp_path / "run", "rl")
    assert before["eval/solved"] < 0.35
    assert steps[-1]["eval/solved"] > 0.6
    assert max(row["logprob/abs_diff_max"] for row in steps) < 1e-5


def test_only_adapters_change_and_only_they_have_moments_and_a_reference(config, tmp_path):
    """Sixteen supervised steps and two RL steps with a KL, whose reference is RL's start."""
    warmstart = replace(
        config.warmstart, steps=16, optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    )
    config = replace(
        config,
        warmstart=warmstart,
        steps=2,
        objective=replace(config.objective, kl_coefficient=0.1),
        updates_per_rollout=1,
    )
    run = tmp_path / "run"
    assert train(config, run)
    _, *losses = (row.get("loss/supervised") for row in rows(run, "warmstart"))
    assert losses[-1] < 0.5 * losses[0]
    first, second = rows(run, "rl")[1:]
    assert abs(first["kl/reference"]) < 1e-6 and second["kl/reference"] > 1e-4

    mesh = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    base = init_params(replace(config.model, lora=None), key, mesh)
    frozen = arrays(run, "frozen")
    assert len(frozen) == len(jax.tree.leaves(base))
    for path, variable in nnx.to_flat_state(base):
        np.testing.assert_array_equal(frozen[tuple(map(str, path))], variable[...])

    params, reference = arrays(run, "params"), arrays(run, "reference")
    assert params.keys() == reference.keys() and len(params) == 2 * ADAPTERS
    assert all((params[path] != reference[path]).any() for path in params)
    moments = sorted(x.shape for x in arrays(run, "opt_state").values())
    assert moments == sorted(2 * [x.shape for x in params.values()])

    model = load_run(run, None)
    loaded = {tuple(map(str, path)): x[...] for path, x in nnx.to_flat_state(nnx.state(model))}
    assert loaded.keys() == params.keys() | frozen.keys()
    for path, x in (params | frozen).items():
        np.testing.assert_array_equal(loaded[path], x)


@pytest.mark.slow
def test_a_run_that_stopped_and_went_on_ends_as_one_that_did_not(config, tmp_path):
    """Through the KL's reference, the moments and the base, bit for bit."""
    config = replace(config, objective=replace(config.objective, kl_coefficient=0.1), steps=4)
    assert train(config, tmp_path / "whole")
    assert train(replace(config, steps=2), tmp_path / "parts")
    assert train(config, tmp_path / "parts")
    for part in ("params", "frozen", "reference", "opt_state"):
        whole, parts = (arrays(tmp_path / name, part) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys() and whole
        for path, x in whole.items():
            np.testing.assert_array_equal(x, parts[path])


def test_fresh_adapters_for_a_given_base_are_those_of_the_whole_model(config):
    mesh, key = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), jax.random.key(3)
    expected, _ = split_trained(init_params(config.model, key, mesh))
    adapters = init_adapters(config.model, key, mesh)
    assert jax.tree.structure(adapters) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(adapters), jax.tree.leaves(expected), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)


def test_an_update_of_adapters_counts_no_product_for_the_gradient_of_the_base(config):
    """A step with LoRA is 1 + 2 forward passes, without it 1 + 3; adapters add their own."""
    plain = replace(config.model, lora=None)
    tokens = dict(prompt_tokens=10, response_tokens=20)
    sizes = {"qkv": 16 + 48, "q": 16 + 16, "k": 16 + 8, "v": 16 + 8}
    square = 16 + 16  # output_gate, both o, and the MLPs' three, all from 16 to 16
    adapters = 8 * (sum(sizes.values()) + (1 + 2 + 2 * 3) * square)
    expected = step_flops(plain, **tokens) * 3 / 4 + 2 * adapters * 30 * 3
    assert step_flops(config.model, **tokens) == pytest.approx(expected, rel=1e-12)
