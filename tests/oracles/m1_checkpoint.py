"""A small checkpoint in the names of MiniMax-M1's release, and its weights for `numpy_decoder`.

Written from the shapes and layouts of the released files, sharing nothing with mmrl's table.
"""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from oracles.numpy_decoder import decoder

ATTENTION_TYPES = [0, 0, 1, 0, 0, 1]
CONFIG = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "model_type": "minimax_m1",
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "attn_type_list": ATTENTION_TYPES,
    "rotary_dim": 4,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-5,
    "postnorm": True,
    "layernorm_full_attention_alpha": 1.7,
    "layernorm_full_attention_beta": 0.9,
    "layernorm_linear_attention_alpha": 1.3,
    "layernorm_linear_attention_beta": 1.1,
    "layernorm_mlp_alpha": 1.5,
    "layernorm_mlp_beta": 0.8,
    "shared_intermediate_size": [0],
    "shared_moe_mode": "sigmoid",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "sliding_window": None,
}


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by the names and shapes of MiniMax-M1-80k's index, in float32."""
    rng = np.random.default_rng(seed)
    m, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shared = config["shared_intermediate_size"][0]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, m)}
    shapes |= {"lm_head.weight": (v, m), "model.norm.weight": (m,)}
    for i, kind in enumerate(config["attn_type_list"]):
        layer = f"model.layers.{i}."
        attention, moe = f"{layer}self_attn.", f"{layer}block_sparse_moe."
        shapes |= {
            f"{layer}{n}.weight": (m,) for n in ("input_layernorm", "post_attention_layernorm")
        }
        if kind == 0:
            shapes[f"{attention}qkv_proj.weight"] = (3 * q, m)
            shapes[f"{attention}output_gate.weight"] = (q, m)
            shapes[f"{attention}out_proj.weight"] = (m, q)
            shapes[f"{attention}norm.weight"] = (q,)
        else:
            shapes[f"{attention}q_proj.weight"] = (q, m)
            shapes[f"{attention}k_proj.weight"] = (kv, m)
            shapes[f"{attention}v_proj.weight"] = (kv, m)
            shapes[f"{attention}o_proj.weight"] = (m, q)
        shapes[f"{moe}gate.weight"] = (config["num_local_experts"], m)
        for e in range(config["num_local_experts"]):
            shapes |= {f"{moe}experts.{e}.{w}.weight": (f, m) for w in ("w1", "w3")}
            shapes[f"{moe}experts.{e}.w2.weight"] = (m, f)
        if shared:
            shapes |= {f"{layer}shared_mlp.{n}_proj.weight": (shared, m) for n in ("gate", "up")}
            shapes[f"{layer}shared_mlp.down_proj.weight"] = (m, shared)
            shapes[f"{layer}coefficient.weight"] = (1, m)
    return {
        name: (rng.normal(1, 0.2, shape) if len(shape) == 1 else rng.normal(0, 0.25, shape)).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def write(path: Path, config: dict, weights: dict[str, np.ndarray]) -> Path:
    """A Hugging Face directory with one file of weights, by the `safetensors` library."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def expected_logits(tokens: np.ndarray, weights: dict[str, np.ndarray], model_config) -> np.ndarray:
    """Logits [B, T, V] of `numpy_decoder` in float64 with weights by their released names."""
    heads, kv, d = model_config.num_heads, model_config.num_kv_heads, model_config.head_dim
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def projection(name, count):  # rows are head after head
        return w[name].T.reshape(-1, count, w[name].shape[0] // count)

    layers = []
    for i, kind in enumerate(ATTENTION_TYPES):
        layer = f"model.layers.{i}."
        attention, moe = f"{layer}self_attn.", f"{layer}block_sparse_moe."
        if kind == 0:
            mixer = {
                "qkv": projection(f"{attention}qkv_proj.weight", heads),
                "gate": projection(f"{attention}output_gate.weight", heads),
                "out": w[f"{attention}out_proj.weight"].T.reshape(heads, d, -1),
                "norm": {"weight": w[f"{attention}norm.weight"]},
            }
        else:
            mixer = {
                "q": projection(f"{attention}q_proj.weight", heads),
                "k": projection(f"{attention}k_proj.weight", kv),
                "v": projection(f"{attention}v_proj.weight", kv),
                "out": w[f"{attention}o_proj.weight"].T.reshape(heads, d, -1),
            }
        experts = range(model_config.num_experts)
        mlp = {
            ours: [w[f"{moe}experts.{e}.{theirs}.weight"].T for e in experts]
            for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        }
        mlp["router"] = w[f"{moe}gate.weight"].T
        if f"{layer}coefficient.weight" in w:
            names = ("gate", "up", "down")
            mlp["shared"] = {n: w[f"{layer}shared_mlp.{n}_proj.weight"].T for n in names}
            mlp["shared_coefficient"] = w[f"{layer}coefficient.weight"].T
        norms = ("input", "post_attention")
        layers.append(
            {f"{n}_norm": {"weight": w[f"{layer}{n}_layernorm.weight"]} for n in norms}
            | {"attention": mixer, "mlp": mlp}
        )
    # The oracle takes each run of equal layers stacked: lightning 0, 1, 3, 4 and softmax 2, 5.
    runs = [_stack([layers[i] for i in (0, 1, 3, 4)]), _stack([layers[i] for i in (2, 5)])]
    params = {
        "embedding": w["model.embed_tokens.weight"],
        "head": w["lm_head.weight"],
        "final_norm": w["model.norm.weight"],
        "runs": runs,
    }
    return np.stack([decoder(row, params, model_config) for row in tokens])


def _stack(layers: list):
    if isinstance(layers[0], dict):
        return {name: _stack([layer[name] for layer in layers]) for name in layers[0]}
    return np.stack([np.asarray(layer) for layer in layers])
