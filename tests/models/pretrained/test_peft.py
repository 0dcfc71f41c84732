"""Adapters against the peft library: files both ways, logits, gradients and merged exports."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model

from mmrl.convert import convert
from mmrl.errors import UserError
from mmrl.models import LoraConfig
from mmrl.models.pretrained.load import load
from mmrl.models.pretrained.orbax import save_orbax
from mmrl.models.pretrained.peft import load_peft, save_peft
from mmrl.models.pretrained.save import save_hf

pytestmark = pytest.mark.oracle

SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_position_embeddings=64,
    initializer_range=0.2,
)
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
}
TARGETS = {
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "some": ["q_proj", "o_proj", "up_proj"],
}
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 11))


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    """A directory with a small model of each family."""
    return save_base(request.param, tmp_path / "base")


def save_base(family: str, directory):
    torch.manual_seed(0)
    hf_config = FAMILIES[family]()
    if family == "qwen2":  # whose head size is hidden_size / heads, whatever its config says
        hf_config.head_dim = hf_config.hidden_size // hf_config.num_attention_heads
    model = transformers.AutoModelForCausalLM.from_config(hf_config).float()
    model.save_pretrained(directory)
    return directory


def torch_model(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def adapted(base, targets="all", **changes) -> PeftModel:
    """The base with an adapter of peft's whose B is random."""
    settings = dict(r=4, lora_alpha=6, target_modules=TARGETS[targets], task_type="CAUSAL_LM")
    model = get_peft_model(torch_model(base), PeftConfig(**(settings | changes))).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def logits(model) -> np.ndarray:
    return np.asarray(model(jnp.asarray(TOKENS))[0])


def relative_error(actual, expected) -> float:
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("targets", TARGETS)
def test_logits_and_gradients_equal_those_of_the_adapter_that_peft_saved(targets, base, tmp_path):
    reference = adapted(base, targets)
    reference.save_pretrained(tmp_path / "adapter")
    plain, _ = load(base)
    model = load_peft(tmp_path / "adapter", plain)
    expected = torch_logits(reference)
    assert relative_error(logits(plain), expected) > 0.1
    assert relative_error(logits(model), expected) < 2e-5

    weights = np.random.default_rng(1).normal(size=expected.shape)
    (reference(torch.tensor(TOKENS)).logits * torch.tensor(weights, dtype=torch.float32)).sum(
    ).backward()  # fmt: skip
    graphdef, adapters, frozen = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapters):
        return jnp.sum(nnx.merge(graphdef, adapters, frozen)(TOKENS)[0] * weights)

    grads = nnx.to_pure_dict(jax.jit(jax.grad(loss))(adapters))["runs"][0]
    compared = 0
    for name, parameter in reference.named_parameters():
        if parameter.grad is None:
            continue
        # base_model.model.model.layers.2.self_attn.q_proj.lora_A.default.weight
        *_, layer, part, module, matrix, _, _ = name.split(".")
        ours = {"self_attn": "attention", "mlp": "mlp"}[part]
        weight = {"o_proj": "out"}.get(module, module.removesuffix("_proj"))
        expected_grad = parameter.grad.numpy()
        found = np.asarray(grads[ours][f"{weight}_lora"][matrix[-1].lower()][int(layer)])
        rank_first = found.reshape(-1, 4).T if matrix == "lora_A" else found.reshape(4, -1)
        rank_first = rank_first if matrix == "lora_A" else rank_first.T
        assert relative_error(rank_first, expected_grad) < 1e-4
        compared += 1
    assert compared == len(TARGETS[targets]) * 3 * 2 == 3 * len(jax.tree.leaves(adapters))


def test_peft_loads_what_was_saved_and_merges_to_the_same_logits_as_the_export(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    plain, _ = load(base)
    model = load_peft(tmp_path / "adapter", plain)
    graphdef, adapters, frozen = nnx.split(model, nnx.LoRAParam, ...)
    changed = jax.tree.map(lambda x: 1.5 * x + 0.01, adapters)
    model = nnx.merge(graphdef, changed, frozen)

    save_peft(model, tmp_path / "ours", base="base")
    reference = PeftModel.from_pretrained(torch_model(base), tmp_path / "ours").eval()
    expected = torch_logits(reference)
    assert relative_error(expected, torch_logits(adapted(base))) > 0.01
    assert relative_error(logits(model), expected) < 2e-5
    assert reference.peft_config["default"].base_model_name_or_path == "base"

    save_hf(nnx.state(model), model.config, tmp_path / "merged")
    for other in (reference.merge_and_unload(), torch_model(tmp_path / "merged")):
        assert relative_error(logits(model), torch_logits(other)) < 2e-5


def test_an_adapter_comes_back_from_its_file_bit_for_bit_and_replaces_an_earlier_one(tmp_path):
    base = save_base("llama", tmp_path / "base")
    reference = adapted(base)
    for directory in ("theirs", "ours"):
        reference.save_pretrained(tmp_path / directory)
    plain, _ = load(base)
    model = load_peft(tmp_path / "theirs", plain)
    save_peft(model, tmp_path / "ours")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    weights = [
        (tmp_path / d / "adapter_model.safetensors").read_bytes() for d in ("theirs", "ours")
    ]
    assert weights[0] == weights[1]


def test_rank_stabilised_adapters_keep_their_scale(tmp_path):
    base = save_base("llama", tmp_path / "base")
    reference = adapted(base, use_rslora=True)
    reference.save_pretrained(tmp_path / "adapter")
    model = load_peft(tmp_path / "adapter", load(base)[0])
    assert model.config.lora == LoraConfig(4, 12.0, ("q", "k", "v", "o", "gate", "up", "down"))
    assert relative_error(logits(model), torch_logits(reference)) < 2e-5


def test_a_run_with_adapters_converts_to_a_merged_model_and_to_adapter_files(tmp_path):
    base = save_base("llama", tmp_path / "base")
    reference = adapted(base)
    reference.save_pretrained(tmp_path / "adapter")
    (tmp_path / "run").mkdir()
    save_orbax(load_peft(tmp_path / "adapter", load(base)[0]), tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "merged")
    convert(tmp_path / "run", tmp_path / "adapters", "peft")
    loaded = PeftModel.from_pretrained(torch_model(base), tmp_path / "adapters").eval()
    for model in (loaded, torch_model(tmp_path / "merged")):
        assert relative_error(torch_logits(model), torch_logits(reference)) < 2e-5
    with pytest.raises(ValueError, match="the model has no adapters"):
        convert(base, tmp_path / "none", "peft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "adapter_config.json: use_dora=True is not supported; merge"),
        ({"bias": "all"}, "adapter_config.json: bias='all' is not supported"),
        (
            {"layers_to_transform": [0, 2]},
            r"layers.1.self_attn.[kq]_proj.lora_A.weight of shape \(4",
        ),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            "embed_tokens.base_layer.weight of .* is unexpected",
        ),
        (
            {"target_modules": ["lm_head"]},
            r"expected tensors as .*layers.0.self_attn.*, found .*lm_head",
        ),
    ],
)
def test_what_the_decoder_cannot_do_is_an_error_that_names_it(changes, message, tmp_path):
    base = save_base("llama", tmp_path / "base")
    adapted(base, **changes).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=message):
        load_peft(tmp_path / "adapter", load(base)[0])


def test_an_adapter_of_another_model_names_the_tensor_and_both_shapes(tmp_path):
    base = save_base("llama", tmp_path / "base")
    adapted(base).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 8}))
    message = r"_proj.lora_A.weight: expected shape \(8, 24\), .* found \(4, 24\)"
    with pytest.raises(UserError, match=message):
        load_peft(tmp_path / "adapter", load(base)[0])
