"""Decoders that plans are made for, beside `mmrl.models.minimax_m1`."""

import dataclasses

from mmrl.models import DecoderConfig, minimax_m1


def minimax_m2(**changes) -> DecoderConfig:
    """MiniMax-M2: 228.7B parameters, 9.8B active, full attention in all 62 layers.

    By copies of its config.json that agree with each other and with transformers' defaults. The
    released weights hold none of its three multi-token-prediction modules, and neither does this.
    """
    m2 = DecoderConfig(
        vocab_size=200_064,
        hidden_size=3072,
        num_layers=62,
        num_heads=48,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=1536,
        rope_theta=5_000_000.0,
        rotary_dim=64,
        context_length=196_608,
        qk_norm="width",
        num_experts=256,
        experts_per_token=8,
        router="sigmoid",
        router_bias=True,
        load_balance_coefficient=0.001,
        norm_eps=1e-6,
        param_dtype="bfloat16",
        dtype="bfloat16",
        remat="full",
    )
    return dataclasses.replace(m2, **changes)


def qwen2_5_7b(**changes) -> DecoderConfig:
    """Qwen2.5-7B: 7.62B parameters, dense (Qwen/Qwen2.5-7B config.json)."""
    qwen = DecoderConfig(
        vocab_size=152_064,
        hidden_size=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        intermediate_size=18_944,
        rope_theta=1_000_000.0,
        context_length=131_072,
        attention_bias=True,
        norm_eps=1e-6,
        param_dtype="bfloat16",
        dtype="bfloat16",
        remat="full",
    )
    return dataclasses.replace(qwen, **changes)


PRESETS = {"minimax_m1": minimax_m1, "minimax_m2": minimax_m2, "qwen2_5_7b": qwen2_5_7b}
