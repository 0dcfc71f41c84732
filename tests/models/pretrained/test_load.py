"""Loading: every spelling, every layout of devices, and what is wrong with a checkpoint."""

import json
import math
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from oracles import m1_checkpoint

from mmrl.errors import UserError
from mmrl.models import Decoder, load
from mmrl.models.pretrained import tensors as tensor_files
from mmrl.models.pretrained.load import open_checkpoint
from mmrl.sharding import MeshConfig, make_mesh, shardings


def state(model: Decoder) -> dict[tuple, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {path: np.asarray(variable.get_value()) for path, variable in flat}


def assert_same_parameters(one: Decoder, other: Decoder) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=str(path))


def forward(model: Decoder, tokens):
    return jax.jit(lambda model, tokens: model(tokens)[0])(model, tokens)


@pytest.mark.parametrize("shared", [0, 20])
def test_m1_with_partial_rotary_equals_a_float64_forward_pass_from_its_own_names(shared, tmp_path):
    config = m1_checkpoint.CONFIG | {"shared_intermediate_size": [shared]}
    weights = m1_checkpoint.tensors(config)
    model, tokenizer = load(m1_checkpoint.write(tmp_path, config, weights))
    assert tokenizer is None
    assert model.config.rotary_width < model.config.head_dim
    tokens = np.random.default_rng(0).integers(0, 41, (2, 17))
    expected = m1_checkpoint.expected_logits(tokens, weights, model.config)
    actual = np.asarray(forward(model, tokens))
    assert np.abs(actual - expected).max() / np.abs(expected).max() <= 1e-5


def fused(weights: dict[str, np.ndarray], module: str) -> dict[str, np.ndarray]:
    """The experts of each layer in one tensor, as transformers 5 holds them."""
    out = {
        n.replace("block_sparse_moe", module): w for n, w in weights.items() if ".experts." not in n
    }
    for i in range(len(m1_checkpoint.ATTENTION_TYPES)):
        experts = [f"model.layers.{i}.block_sparse_moe.experts.{e}." for e in range(4)]
        both = [
            np.concatenate([weights[f"{n}w1.weight"], weights[f"{n}w3.weight"]]) for n in experts
        ]
        name = f"model.layers.{i}.{module}.experts."
        out[f"{name}gate_up_proj"] = np.stack(both)
        out[f"{name}down_proj"] = np.stack([weights[f"{n}w2.weight"] for n in experts])
    return out  # fmt: skip


@pytest.mark.parametrize("spelling", ["mlp", "fused mlp", "fused block_sparse_moe", "qwen"])
def test_every_spelling_of_the_experts_gives_the_same_parameters(
    spelling, m1_path, m1_tensors, tmp_path
):
    if spelling.startswith("fused"):
        other = fused(m1_tensors, spelling.removeprefix("fused "))
    else:
        other = {name.replace("block_sparse_moe", "mlp"): w for name, w in m1_tensors.items()}
    if spelling == "qwen":
        for old, new in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            other = {name.replace(f".{old}.", f".{new}."): w for name, w in other.items()}
    path = m1_checkpoint.write(tmp_path / "other", m1_checkpoint.CONFIG, other)
    assert_same_parameters(load(path)[0], load(m1_path)[0])


def test_buffers_and_a_tied_head_are_passed_over(m1_path, m1_tensors, tmp_path):
    tied = {name: w for name, w in m1_tensors.items() if name != "lm_head.weight"}
    config = m1_checkpoint.CONFIG | {"tie_word_embeddings": True}
    expected, _ = load(m1_checkpoint.write(tmp_path / "tied", config, tied))
    more = m1_tensors | {
        f"model.layers.0.self_attn.{name}": np.zeros(4, np.float32)
        for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
    }
    more["model.layers.2.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert_same_parameters(load(m1_checkpoint.write(tmp_path / "more", config, more))[0], expected)


@pytest.mark.parametrize(
    ("stored", "held"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
def test_parameters_have_the_checkpoints_dtype_and_float16_becomes_float32(
    stored, held, tmp_path, m1_tensors
):
    kind = ml_dtypes.bfloat16 if stored == "bfloat16" else np.dtype(stored)
    # The routers stay in float32, as in the released weights.
    cast = {n: w if ".gate." in n else w.astype(kind) for n, w in m1_tensors.items()}
    path = m1_checkpoint.write(tmp_path, m1_checkpoint.CONFIG, cast)
    model, _ = load(path)
    assert (model.config.param_dtype, model.config.dtype) == (held, held)
    for path_, value in state(model).items():
        assert value.dtype.name == ("float32" if path_[-1] == "router" else held)
    np.testing.assert_array_equal(
        np.asarray(model.embedding[...], np.float32),
        cast["model.embed_tokens.weight"].astype(np.float32),
    )
    other, _ = load(path, param_dtype="bfloat16", dtype="float32")
    assert (other.config.param_dtype, other.config.dtype) == ("bfloat16", "float32")
    assert other.embedding[...].dtype.name == "bfloat16"


MESHES = [MeshConfig(expert=2, fsdp=2, tensor=2), MeshConfig(tensor=4), MeshConfig(fsdp=8)]


@pytest.mark.parametrize("mesh_config", MESHES, ids=str)
def test_parameters_on_a_mesh_are_laid_out_by_its_rules_and_equal_those_of_one_device(
    mesh_config, m1_path
):
    mesh = make_mesh(mesh_config)
    model, _ = load(m1_path, mesh=mesh)
    assert_same_parameters(model, load(m1_path)[0])
    abstract = nnx.state(nnx.eval_shape(lambda: Decoder(model.config, nnx.Rngs(0))))
    expected = dict(nnx.to_flat_state(shardings(abstract, mesh)))
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        assert variable.get_value().sharding == expected[path].get_value()


def test_a_device_reads_the_bytes_of_its_own_shards_only(m1_path, monkeypatch):
    counted = 0

    def preadv(handle, buffers, offset):
        nonlocal counted
        counted += sum(len(buffer) for buffer in buffers)
        return original(handle, buffers, offset)

    original = os.preadv
    monkeypatch.setattr(tensor_files.os, "preadv", preadv)
    checkpoint = open_checkpoint(m1_path)
    mesh = make_mesh(MeshConfig(expert=2, fsdp=2, tensor=2))
    abstract = nnx.state(nnx.eval_shape(lambda: Decoder(checkpoint.config, nnx.Rngs(0))))
    places = dict(nnx.to_flat_state(shardings(abstract, mesh)))
    device = jax.devices()[5]
    owned = 0
    for stored in checkpoint.stored:
        p = stored.parameter
        shape = p.shape if p.layers is None else (len(p.layers), *p.shape)
        index = places[p.path].get_value().addressable_devices_indices_map(shape)[device]
        shard = stored.read(index, np.dtype(np.float32))
        owned += shard.nbytes
    assert counted == owned
    assert owned < 0.3 * (m1_path / "model.safetensors").stat().st_size


def test_shards_that_several_devices_hold_are_read_once(m1_path, monkeypatch):
    reads = []
    original = tensor_files._read_exactly
    monkeypatch.setattr(
        tensor_files,
        "_read_exactly",
        lambda handle, target, *rest: (reads.append(len(target)), original(handle, target, *rest)),
    )
    load(m1_path, mesh=make_mesh(MeshConfig(fsdp=2)))
    weights = safetensors.numpy.load_file(m1_path / "model.safetensors")
    assert sum(reads) == sum(w.nbytes for w in weights.values())


def rewritten(path, change):
    """The checkpoint with `change` applied to its tensors."""
    weights = safetensors.numpy.load_file(path / "model.safetensors")
    change(weights)
    safetensors.numpy.save_file(weights, path / "model.safetensors")
    return path


W2 = "model.layers.3.block_sparse_moe.experts.2.w2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(W2), rf"expected a tensor {W2} of shape \(24, 12\), found none"),
        (lambda w: w.update(x=w.pop("model.norm.weight")), r"model.norm.weight of shape \(24,\)"),
        (
            lambda w: w.update({W2.replace("w2", "w9"): w.pop(W2)}),
            f"{W2} .*Did you mean {W2.replace('w2', 'w9')}",
        ),
        (
            lambda w: w.update({W2: w[W2].T.copy()}),
            rf"{W2}: expected shape \(24, 12\), .*found \(12, 24\)",
        ),
        (
            lambda w: w.update({W2: w[W2].astype(np.bool_)}),
            f"{W2}: expected floating point numbers, found bool",
        ),
        (
            lambda w: w.update({W2: w[W2].astype(np.int8)}),
            rf"{W2} \(int8\): this quantisation is not supported",
        ),
        (
            lambda w: w.update({"model.layers.9.mlp.up_proj.weight": w[W2]}),
            r"tensor model.layers.9.mlp.up_proj.weight of shape \(24, 12\) is unexpected",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if ".experts." in name],
            r"experts.0.w1.weight.*\(72 tensors are missing\)|\(72 tensors are missing\)",
        ),
    ],
)
def test_a_wrong_tensor_is_one_error_with_file_name_expectation_and_finding(
    change, message, m1_path
):
    with pytest.raises(UserError, match=message) as error:
        load(rewritten(m1_path, change))
    assert str(error.value).startswith(str(m1_path / "model.safetensors"))
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(m1_path):
    file = m1_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{file}.*truncated"):
        load(m1_path)


def test_a_config_of_other_sizes_names_the_first_tensor_that_differs(m1_path):
    config = m1_checkpoint.CONFIG | {"vocab_size": 40}
    (m1_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"model.embed_tokens.weight: expected shape \(40, 24\).*found \(41, 24\)"
    ):
        load(m1_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json: not JSON"),
        ("[1]", "config.json: expected an object"),
        ('{"model_type": "minimax_m4"}', "'minimax_m4' is not one of.*Did you mean minimax_m"),
        (None, "expected a Hugging Face directory"),
    ],
)
def test_a_directory_without_a_model_says_what_was_expected(content, message, m1_path):
    file = m1_path / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=message):
        load(m1_path)


def test_a_path_that_is_not_there_names_the_nearest(m1_path):
    with pytest.raises(UserError, match=f"no model .* Did you mean {m1_path}"):
        load(m1_path.with_name("m2"))


def test_parameters_count_what_the_file_holds(m1_path):
    checkpoint = open_checkpoint(m1_path)
    held = sum(
        math.prod(s.parameter.shape) * len(s.parameter.layers or (0,)) for s in checkpoint.stored
    )
    weights = safetensors.numpy.load_file(m1_path / "model.safetensors")
    assert held == sum(w.size for w in weights.values())
