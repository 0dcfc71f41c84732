"""Small models of transformers, drawn at random, whose every weight matters to the result."""

import numpy as np
import torch
import transformers

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3_moe", "minimax", "minimax_m2")
VOCABULARY = 53


def random_config(architecture: str, seed: int) -> transformers.PreTrainedConfig:
    """A config; seeds 0, 1, 2 between them have tied and untied embeddings and every option."""
    rng = np.random.default_rng([ARCHITECTURES.index(architecture), seed])
    heads = int(rng.choice([3, 4, 6]))
    head_dim = int(rng.choice([8, 16]))
    common = dict(
        vocab_size=VOCABULARY,
        hidden_size=24 if heads == 3 else 48,
        intermediate_size=int(rng.choice([20, 28])),
        num_hidden_layers=int(rng.integers(2, 5)),
        num_attention_heads=heads,
        num_key_value_heads=int(rng.choice([n for n in (1, 2, 3, heads) if heads % n == 0])),
        head_dim=head_dim,
        tie_word_embeddings=bool(seed % 2),
        initializer_range=0.25,
        rms_norm_eps=float(rng.choice([1e-5, 1e-6])),
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    experts = dict(num_experts_per_tok=int(rng.choice([2, 3])))
    theta = float(rng.choice([1e4, 1e6]))
    if architecture == "llama":
        rope = (
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": 2.5},
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        )[seed % 3]
        bias = bool(rng.integers(2))
        options = dict(rope_parameters=rope | {"rope_theta": theta}, attention_bias=bias)
        return transformers.LlamaConfig(**common | options)
    common["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if architecture == "qwen2":
        common |= dict(head_dim=common["hidden_size"] // heads)
        return transformers.Qwen2Config(**common)
    if architecture == "qwen3":
        return transformers.Qwen3Config(**common, attention_bias=seed == 2)
    if architecture == "qwen3_moe":
        options = dict(num_experts=int(rng.choice([4, 7])), norm_topk_prob=seed != 1)
        options |= dict(moe_intermediate_size=common["intermediate_size"])
        return transformers.Qwen3MoeConfig(**common | experts | options)
    experts["num_local_experts"] = int(rng.choice([4, 7]))
    if architecture == "minimax_m2":
        del common["rope_parameters"]
        rotary = dict(rotary_dim=(4, 8, head_dim)[seed % 3], rope_theta=theta)
        return transformers.MiniMaxM2Config(**common | experts | rotary)
    kinds = [("full_attention", "linear_attention")[i] for i in rng.integers(2, size=4)]
    kinds[int(rng.integers(4))] = "linear_attention"
    factors = ("full_attn", "linear_attn", "mlp")
    residual = {f"{n}_{k}_factor": rng.uniform(0.5, 2) for n in factors for k in ("alpha", "beta")}
    layers = dict(num_hidden_layers=4, layer_types=kinds, block_size=16)
    return transformers.MiniMaxConfig(**common | experts | residual | layers)


def random_model(config: transformers.PreTrainedConfig, seed: int = 0):
    """A float32 model in eager attention, with random biases and norms as well."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.3, 0.3)
    return model
