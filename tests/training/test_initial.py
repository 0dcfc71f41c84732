"""Runs that start from a model on disk: its parameters, and only at the start."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.models import Decoder, DecoderConfig, LoraConfig, config_of
from mmrl.models.pretrained.save import save_hf
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.train import train
from mmrl.training.config import TrainConfig
from mmrl.training.run import Run

from .conftest import CONFIG


@pytest.fixture
def pretrained(tmp_path) -> tuple[Decoder, str]:
    """A model of the copy task with parameters that no run of seed 0 would draw, in HF form."""
    return written(configs.load(CONFIG).model, tmp_path / "pretrained")


def written(config: DecoderConfig, directory: Path) -> tuple[Decoder, str]:
    model = Decoder(config, nnx.Rngs(99))
    save_hf(nnx.state(model), config, directory)
    return model, str(directory)


@pytest.fixture
def config(data_file, pretrained, monkeypatch) -> TrainConfig:
    monkeypatch.chdir(data_file.parent)
    config = configs.load(CONFIG)
    return replace(
        config,
        initial=pretrained[1],
        model=replace(config_of(pretrained[1]), remat="full", scan_layers=False),
        warmstart=replace(config.warmstart, steps=0),
        checkpoint=replace(config.checkpoint, interval=1),
        steps=1,
    )


def begin(config: TrainConfig, workdir) -> Run:
    with jax.set_mesh(make_mesh(MeshConfig())):
        run = Run(config, workdir)
        run.writer.close()
        return run


def by_path(state: nnx.State) -> dict:
    flat = nnx.to_flat_state(state)
    return {path: np.asarray(variable[...]) for path, variable in flat}


def assert_equal(found: nnx.State, expected: nnx.State) -> None:
    found_arrays, expected_arrays = by_path(found), by_path(expected)
    assert found_arrays.keys() == expected_arrays.keys()
    for path, value in expected_arrays.items():
        np.testing.assert_array_equal(found_arrays[path], value, err_msg=str(path))


def test_a_run_starts_from_the_pretrained_parameters(config, pretrained, tmp_path):
    run = begin(config, tmp_path / "run")
    assert_equal(run.state.params, nnx.state(pretrained[0]))


def test_a_run_may_read_its_pretrained_head_in_bfloat16(config, pretrained, tmp_path):
    run = begin(
        replace(config, model=replace(config.model, head_dtype="bfloat16")), tmp_path / "run"
    )
    logits = np.asarray(jax.jit(lambda tokens: run.model()(tokens)[0])(np.arange(3)[None]))
    assert np.array_equal(logits, logits.astype(jnp.bfloat16).astype(np.float32))
    assert_equal(run.state.params, nnx.state(pretrained[0]))


def test_with_adapters_the_base_is_frozen_and_the_policy_starts_as_the_pretrained(
    config, pretrained, tmp_path
):
    dense, path = written(replace(config.model, num_experts=0), tmp_path / "dense")
    model = replace(config_of(path), remat="full", scan_layers=False, lora=LoraConfig(rank=2))
    run = begin(replace(config, initial=path, model=model), tmp_path / "run")
    assert_equal(run.state.frozen, nnx.state(dense))
    tokens = np.arange(6)[None] % config.tokenizer.vocab_size
    np.testing.assert_array_equal(run.model()(tokens)[0], dense(tokens)[0])


def test_a_config_of_another_shape_is_refused_with_the_field_and_the_remedy(config, tmp_path):
    other = replace(config, model=replace(config.model, intermediate_size=24))
    with pytest.raises(UserError, match=r"intermediate_size=16 .* 24: .*mmrl\.models\.config_of"):
        begin(other, tmp_path / "run")


def test_a_continued_run_does_not_need_the_pretrained_model_again(config, tmp_path):
    """One step, then the pretrained model is gone, then a second: as two steps in one go."""
    assert train(replace(config, steps=2), tmp_path / "whole")
    assert train(config, tmp_path / "parts")
    shutil.rmtree(config.initial)
    assert train(replace(config, steps=2), tmp_path / "parts")
    whole, parts = (
        begin(replace(config, steps=2), tmp_path / name).state.params for name in ("whole", "parts")
    )
    assert_equal(parts, whole)
