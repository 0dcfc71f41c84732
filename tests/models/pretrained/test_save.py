"""Saving: directories that transformers loads strictly, the same bits back, nothing half done."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx
from oracles import m1_checkpoint
from oracles.transformers_models import ARCHITECTURES, random_config, random_model

from mmrl.errors import UserError
from mmrl.models import Decoder, DecoderConfig, load
from mmrl.models.config import LoraConfig
from mmrl.models.pretrained import save as save_module
from mmrl.models.pretrained.save import save_hf
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.text import CharTokenizer

pytestmark = pytest.mark.oracle

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
BUFFERS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory by `safetensors`, but for buffers that are computed."""
    found: dict[str, np.ndarray] = {}
    for file in path.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return {name: w for name, w in found.items() if not name.endswith(BUFFERS)}


def assert_same_weights(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_a_saved_directory_strictly_with_the_same_bits(
    architecture, dtype, tmp_path
):
    # With a router in float32 for the MiniMax families, whatever dtype their other weights have.
    theirs = random_model(random_config(architecture, 1), 1).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    original = weights(tmp_path / "theirs")
    if architecture.startswith("minimax"):
        routers = (".gate.weight", "e_score_correction_bias")
        original |= {n: w.astype("f4") for n, w in original.items() if n.endswith(routers)}
    model, _ = load(tmp_path / "theirs")
    save_hf(nnx.state(model), model.config, tmp_path / "ours", dtype=dtype)
    assert_same_weights(weights(tmp_path / "ours"), original)

    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values())
    assert loaded.dtype == getattr(torch, dtype)
    for name, value in theirs.state_dict().items():
        if not name.endswith(BUFFERS):
            assert torch.equal(loaded.state_dict()[name], value), name
    given, written = theirs.config.to_dict(), loaded.config.to_dict()
    ignored = {"block_size", "transformers_version", "_name_or_path", "pad_token_id", "use_cache"}
    ignored |= {"architectures", "rope_parameters", "dtype", "intermediate_size", "rotary_dim"}
    for name in given.keys() - ignored:
        assert written[name] == given[name], name


def test_the_buffers_of_transformers_minimax_are_its_own_up_to_rounding(tmp_path):
    theirs = random_model(random_config("minimax", 0))
    theirs.config.block_size = 256
    theirs = type(theirs)(theirs.config)
    theirs.save_pretrained(tmp_path / "theirs")
    model, _ = load(tmp_path / "theirs")
    save_hf(nnx.state(model), model.config, tmp_path / "ours")
    loaded = type(theirs).from_pretrained(tmp_path / "ours")
    compared = 0
    for name, value in theirs.state_dict().items():
        if name.endswith(BUFFERS):
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=2e-5, atol=1e-12)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_m1_comes_back_bit_by_bit_with_its_routers_in_float32(dtype, tmp_path, m1_tensors):
    stored = {
        name: w if name.endswith(".gate.weight") else w.astype(DTYPES[dtype])
        for name, w in m1_tensors.items()
    }
    path = m1_checkpoint.write(tmp_path / "m1", m1_checkpoint.CONFIG, stored)
    model, _ = load(path)
    save_hf(nnx.state(model), model.config, tmp_path / "out", dtype=dtype)
    assert_same_weights(weights(tmp_path / "out"), stored)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    written["shared_intermediate_size"] = [written["shared_intermediate_size"]]
    given = m1_checkpoint.CONFIG
    assert {name: written.get(name, given[name]) for name in given} == given


def test_a_model_on_a_mesh_saves_the_same_bits(tmp_path, m1_path, m1_tensors):
    model, _ = load(m1_path, mesh=make_mesh(MeshConfig(expert=2, fsdp=2, tensor=2)))
    save_hf(nnx.state(model), model.config, tmp_path / "out")
    assert_same_weights(weights(tmp_path / "out"), m1_tensors)


SMALL = DecoderConfig(
    vocab_size=100, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    intermediate_size=24,
)  # fmt: skip


def test_adapters_are_merged(tmp_path):
    config = DecoderConfig(**{**vars(SMALL), "lora": LoraConfig(rank=2, alpha=4.0)})
    model = Decoder(config, nnx.Rngs(0))
    adapters = nnx.state(model, nnx.LoRAParam)
    nnx.update(model, nnx.map_state(lambda _, x: x.replace(x.get_value() + 0.1), adapters))
    save_hf(nnx.state(model), config, tmp_path / "out")
    tokens = np.arange(10)[None]
    merged, _ = load(tmp_path / "out")
    assert merged.config.lora is None
    expected = np.asarray(model(jnp.asarray(tokens))[0])
    actual = np.asarray(merged(jnp.asarray(tokens))[0])
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reference = theirs(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(reference - expected).max() <= 2e-5 * np.abs(expected).max()


def test_mmrls_own_tokenizer_comes_back_and_its_stop_ids_are_in_the_config(tmp_path):
    tokenizer = CharTokenizer(alphabet="abc", phrases=("spell",))
    model = Decoder(SMALL, nnx.Rngs(0))
    save_hf(nnx.state(model), SMALL, tmp_path / "out", tokenizer)
    assert load(tmp_path / "out")[1] == tokenizer
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "out" / name).read_text())
        assert (written["eos_token_id"], written["pad_token_id"]) == ([1], 0)


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize("fault", ["overflow", "disk", "tokenizer"])
def test_a_failed_save_leaves_the_earlier_directory_whole_and_nothing_beside_it(
    fault, tmp_path, monkeypatch
):
    model = Decoder(SMALL, nnx.Rngs(0))
    target = tmp_path / "model"
    save_hf(nnx.state(model), SMALL, target, CharTokenizer())
    before = contents(target)
    other = Decoder(SMALL, nnx.Rngs(1))
    if fault == "overflow":
        other.head[...] = other.head[...].at[0, 0].set(1e6)
        with pytest.raises(UserError, match="lm_head.weight: holds 1e\\+06, which float16 cannot"):
            save_hf(nnx.state(other), SMALL, target, dtype="float16")
    else:
        place = "write_safetensors" if fault == "disk" else "save_tokenizer"

        def fail(*args):
            if fault == "disk":
                (args[0] / "model.safetensors").write_bytes(b"half")
            raise OSError("No space left on device")

        monkeypatch.setattr(save_module, place, fail)
        with pytest.raises(OSError, match="No space left"):
            save_hf(nnx.state(other), SMALL, target, CharTokenizer())
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_second_save_replaces_the_first_whole(tmp_path):
    target = tmp_path / "model"
    save_hf(nnx.state(Decoder(SMALL, nnx.Rngs(0))), SMALL, target, CharTokenizer())
    save_hf(nnx.state(Decoder(SMALL, nnx.Rngs(1))), SMALL, target)
    names = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in target.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_is_no_model_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds thesis.tex and is no exported model"):
        save_hf(nnx.state(Decoder(SMALL, nnx.Rngs(0))), SMALL, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
