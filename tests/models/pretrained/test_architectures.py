"""config.json of every architecture as a decoder's config, and back."""

import dataclasses
from pathlib import Path

import pytest
from oracles.m1_checkpoint import CONFIG as SMALL_M1
from oracles.small_models import HYBRID

from mmrl.errors import UserError
from mmrl.models import DecoderConfig, minimax_m1
from mmrl.models.config import RopeScaling
from mmrl.models.pretrained.hf_config import canonical, config_from_hf, config_to_hf

WHERE = Path("somewhere/config.json")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 32,
}
# The released config.json of MiniMax-M1-80k, what bears on the model.
M1_80K = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "attention_dropout": 0.0,
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "layernorm_full_attention_alpha": 3.5565588200778455,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 3.5565588200778455,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 3.5565588200778455,
    "layernorm_mlp_beta": 1.0,
    "max_position_embeddings": 10240000,
    "model_type": "minimax_m1",
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "postnorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000000,
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 200064,
}
M2 = {
    "model_type": "minimax_m2",
    "hidden_size": 3072,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 1536,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "shared_intermediate_size": 0,
    "vocab_size": 200064,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 196608,
    "attn_type_list": [1] * 62,
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "use_mtp": True,
    "num_mtp_modules": 3,
    "layernorm_mlp_beta": 1.0,
    "hidden_act": "silu",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def read(config: dict, **changes) -> DecoderConfig:
    return config_from_hf(config | changes, WHERE)


def test_the_released_m1_config_is_the_preset():
    preset = dataclasses.replace(minimax_m1(), context_length=10_240_000)
    assert canonical(read(M1_80K)) == canonical(preset)
    for name in ("MiniMaxM1", "minimax_text_01"):
        assert read(M1_80K, model_type=name) == read(M1_80K)


def test_m2_is_read_with_its_router_norm_and_partial_rotary():
    assert read(M2) == DecoderConfig(
        vocab_size=200_064, hidden_size=3072, num_layers=62, num_heads=48, num_kv_heads=8,
        head_dim=128, intermediate_size=1536, rope_theta=5e6, rotary_dim=64, qk_norm="width",
        num_experts=256, experts_per_token=8, router="sigmoid", router_bias=True,
        load_balance_coefficient=0.001, norm_eps=1e-6, context_length=196_608,
    )  # fmt: skip


def test_both_spellings_of_rope_read_alike():
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = read(LLAMA, rope_theta=5e5, rope_scaling=llama3 | {"rope_type": "llama3"})
    new = read(LLAMA, rope_parameters=llama3 | {"rope_type": "llama3", "rope_theta": 5e5})
    assert old == new
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    oldest = read(LLAMA, rope_scaling={"type": "linear", "factor": 2})
    assert oldest.rope_scaling == RopeScaling("linear", 2.0)
    half = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}
    without = {k: v for k, v in M2.items() if k not in ("rope_theta", "rotary_dim")}
    assert read(without, rope_parameters=half) == read(M2)


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [
        ([0, 0, 1, 0, 0, 1], ("lightning", "lightning", "softmax")),
        ([1, 0, 1, 0, 1, 0], ("softmax", "lightning")),
        ([0, 1, 1, 0, 1, 1], ("lightning", "softmax", "softmax")),
        ([0, 0, 0, 0, 0, 1], ("lightning",) * 5 + ("softmax",)),
        ([0] * 6, ("lightning",)),
    ],
)  # fmt: skip
def test_the_pattern_is_the_smallest_period_of_the_layers(kinds, pattern):
    assert read(SMALL_M1, attn_type_list=kinds).layer_pattern == pattern


def test_the_shared_expert_is_an_int_or_a_list():
    sizes = [read(SMALL_M1, shared_intermediate_size=s) for s in (16, [16], [16] * 6)]
    assert {config.shared_expert_size for config in sizes} == {16}


def test_transformers_minimax_rotates_whole_heads_unless_its_config_says_otherwise():
    """transformers itself ignores `rotary_dim` there; the released weights were trained with it."""
    native = {k: v for k, v in SMALL_M1.items() if k not in ("attn_type_list", "rotary_dim")}
    native |= {"model_type": "minimax"}
    whole = read(native)
    assert whole.rotary_width == whole.head_dim and whole.lightning_slopes == "transformers"
    assert whole.layer_pattern == ("softmax", "lightning")  # its default, full attention first
    assert read(native, rotary_dim=4).rotary_width == 4
    half = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    assert read(native, rope_parameters=half).rotary_width == 4


def test_absent_fields_mean_what_the_architecture_says():
    llama = read(LLAMA)
    assert (llama.num_kv_heads, llama.head_dim, llama.rope_theta) == (3, 8, 10_000.0)
    assert read(LLAMA, model_type="qwen3").head_dim == 128
    assert read(LLAMA, model_type="qwen2").attention_bias


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLAMA, {"model_type": "lama"}, "model_type 'lama' is not one of.*Did you mean llama"),
        (LLAMA, {"hidden_size": None, "hiden_size": 8}, "no 'hidden_size'.*you mean hiden_size"),
        (LLAMA, {"num_hidden_layers": "4"}, "num_hidden_layers must be an integer, found '4'"),
        (LLAMA, {"num_key_value_heads": 2}, "num_heads=3 must be a multiple of num_kv_heads=2"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias must be False for llama, found True"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act must be 'silu' or 'swish'.*found 'gelu'"),
        (LLAMA, {"attention_dropout": 0.1}, "attention_dropout must be 0.0.*found 0.1"),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope type 'yarn' is not supp"),
        (LLAMA, {"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "rotates whole heads, found 4 of 8"),
        (LLAMA, {"rms_norm_eps": "small"}, "norm_eps"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, "quantisation 'awq' is not supp"),
        (
            LLAMA,
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}
            | {"max_window_layers": 2},
            "sliding_window=64 is in use",
        ),
        (LLAMA | {"model_type": "qwen3"}, {"layer_types": ["full_attention"]}, "found 1 layers"),
        (SMALL_M1, {"attn_type_list": [0, 1, 2] * 2}, "list 0 or 1 for each of the 6.*found 2"),
        (SMALL_M1, {"attn_type_list": None}, "attn_type_list must list 0 or 1"),
        (SMALL_M1, {"sliding_window": 128}, "sliding_window must be absent.*found 128"),
        (SMALL_M1, {"shared_intermediate_size": [0, 8] * 3}, "must be the same in all layers"),
        (SMALL_M1, {"shared_intermediate_size": 8, "shared_moe_mode": "none"}, "shared_moe_mode"),
        (M2, {"scoring_func": "softmax"}, "scoring_func must be 'sigmoid'"),
        (M2, {"attn_type_list": [0, 1] * 31}, "list 1 for each of the 62 layers, found 0"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_compute_is_one_error_that_names_it(config, changes, message):
    with pytest.raises(UserError, match=message) as error:
        read(config, **changes)
    assert str(error.value).startswith(str(WHERE)) and "\n" not in str(error.value)


def test_a_sliding_window_that_is_switched_off_or_has_no_layers_is_no_obstacle():
    qwen = LLAMA | {"model_type": "qwen2", "sliding_window": 64, "max_window_layers": 4}
    assert read(qwen, use_sliding_window=False) == read(qwen, use_sliding_window=True)


DECODERS = {
    "llama": read(LLAMA, attention_bias=True, tie_word_embeddings=True),
    "qwen2": read(LLAMA, model_type="qwen2", num_key_value_heads=1),
    "qwen3": read(LLAMA, model_type="qwen3"),
    "qwen3_moe": read(
        LLAMA, model_type="qwen3_moe", moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2
    ),
    "minimax": read(
        {k: v for k, v in SMALL_M1.items() if k != "attn_type_list"},
        model_type="minimax",
        layer_types=["linear_attention", "full_attention"] * 3,
    ),
    "minimax_m1": HYBRID,
    "minimax_m2": read(M2),
}


@pytest.mark.parametrize("name", DECODERS)
def test_an_export_names_the_architecture_and_reads_back_as_the_same_decoder(name):
    written = config_to_hf(DECODERS[name])
    assert written["model_type"] == name
    assert canonical(config_from_hf(written, WHERE)) == canonical(DECODERS[name])


def test_a_decoder_that_no_architecture_has_is_refused_with_the_field_that_differs():
    config = dataclasses.replace(DECODERS["qwen3"], postnorm=True)
    with pytest.raises(UserError, match="the nearest, qwen3, differs in postnorm=True"):
        config_to_hf(config)
