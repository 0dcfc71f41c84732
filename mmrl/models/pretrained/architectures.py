"""Hugging Face's architectures: what config.json calls the decoder's fields, for each of them.

One table that reading and writing config.json (`hf_config`) both follow.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrl.errors import UserError, nearest
from mmrl.models.config import LayerKind

REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """A field of `DecoderConfig`, its name in config.json, and its value where the name is absent.

    `other` is a second name that is read but not written.
    """

    ours: str
    theirs: str
    default: Any = REQUIRED
    other: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One `model_type`.

    `fixed` are decoder fields that all its models share. `allowed` are config.json's fields whose
    other values mean maths that the decoder does not do; the first value is written. `layers` is
    the field that lists the kinds of the layers, `lightning` whether any may be lightning.
    `partial_rotary`: whether it knows `rotary_dim`. `head_dim` is what an absent field means, None
    for hidden_size / heads.
    """

    model_type: str
    class_name: str
    fields: tuple[Field, ...] = ()
    fixed: dict[str, Any] = field(default_factory=dict)
    allowed: dict[str, tuple] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    layers: Literal["attn_type_list", "layer_types"] | None = None
    lightning: bool = False
    partial_rotary: bool = False
    rope_theta: float = 10_000.0
    head_dim: int | None = None

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Its own fields and those of `COMMON` that it does not name itself."""
        own = {f.ours for f in self.fields}
        return (*(f for f in COMMON if f.ours not in own), *self.fields)

    @property
    def all_allowed(self) -> dict[str, tuple]:
        return {"hidden_act": ("silu", "swish"), "attention_dropout": (0.0,)} | self.allowed


COMMON = (
    Field("vocab_size", "vocab_size"),
    Field("hidden_size", "hidden_size"),
    Field("num_layers", "num_hidden_layers"),
    Field("num_heads", "num_attention_heads"),
    Field("intermediate_size", "intermediate_size"),
    Field("norm_eps", "rms_norm_eps", 1e-6),
    Field("tie_embeddings", "tie_word_embeddings", False),
    Field("initializer_range", "initializer_range", 0.02),
    Field("context_length", "max_position_embeddings", None),
)
BIASES = (
    Field("attention_bias", "attention_bias", False),
    Field("attention_out_bias", "attention_bias", False),
)
LOCAL_EXPERTS = (
    Field("num_experts", "num_local_experts", other="num_experts"),
    Field("experts_per_token", "num_experts_per_tok"),
    Field("load_balance_coefficient", "router_aux_loss_coef", 0.001),
)
NO_WINDOW: dict[str, tuple] = {"sliding_window": (None,)}
NO_JITTER: dict[str, tuple] = {"router_jitter_noise": (0.0,)}

ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM", BIASES, allowed={"mlp_bias": (False,)}),
    Architecture("qwen2", "Qwen2ForCausalLM", fixed={"attention_bias": True}, layers="layer_types"),
    Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        BIASES,
        fixed={"qk_norm": "head"},
        layers="layer_types",
        head_dim=128,
    ),
    Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        (
            *BIASES,
            Field("intermediate_size", "moe_intermediate_size"),
            Field("num_experts", "num_experts", other="num_local_experts"),
            *LOCAL_EXPERTS[1:],
            Field("normalise_top_k", "norm_topk_prob", False),
        ),
        fixed={"qk_norm": "head"},
        allowed={"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    ),
    Architecture(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        (*LOCAL_EXPERTS, Field("router_bias", "use_routing_bias", True)),
        fixed={"qk_norm": "width", "router": "sigmoid"},
        allowed=NO_JITTER
        | {
            "use_qk_norm": (True,),
            "qk_norm_type": ("per_layer",),
            "scoring_func": ("sigmoid",),
            "shared_intermediate_size": (0, [0]),
            "attention_bias": (False,),
        },
        layers="attn_type_list",
        partial_rotary=True,
        rope_theta=5_000_000.0,
        head_dim=128,
    ),
    # transformers' own port of MiniMax-Text-01. It is always post-norm, has its own decay rates,
    # and rotates whole heads whatever the config says: `rotary_dim` or `partial_rotary_factor`,
    # where a config has them, are followed here all the same, because the weights were trained so.
    Architecture(
        "minimax",
        "MiniMaxForCausalLM",
        (
            *LOCAL_EXPERTS,
            Field("norm_eps", "rms_norm_eps", 1e-5),
            Field("softmax_alpha", "full_attn_alpha_factor", 1.0),
            Field("softmax_beta", "full_attn_beta_factor", 1.0),
            Field("lightning_alpha", "linear_attn_alpha_factor", 1.0),
            Field("lightning_beta", "linear_attn_beta_factor", 1.0),
            Field("mlp_alpha", "mlp_alpha_factor", 1.0),
            Field("mlp_beta", "mlp_beta_factor", 1.0),
        ),
        fixed={"postnorm": True, "lightning_slopes": "transformers"},
        allowed=NO_WINDOW | NO_JITTER,
        layers="layer_types",
        lightning=True,
        partial_rotary=True,
        rope_theta=1_000_000.0,
    ),
    Architecture(
        "minimax_m1",
        "MiniMaxM1ForCausalLM",
        (
            *LOCAL_EXPERTS,
            Field("norm_eps", "rms_norm_eps", 1e-5),
            Field("postnorm", "postnorm", False),
            Field("shared_expert_size", "shared_intermediate_size", 0),
            Field("softmax_alpha", "layernorm_full_attention_alpha", 1.0),
            Field("softmax_beta", "layernorm_full_attention_beta", 1.0),
            Field("lightning_alpha", "layernorm_linear_attention_alpha", 1.0),
            Field("lightning_beta", "layernorm_linear_attention_beta", 1.0),
            Field("mlp_alpha", "layernorm_mlp_alpha", 1.0),
            Field("mlp_beta", "layernorm_mlp_beta", 1.0),
        ),
        allowed=NO_WINDOW | NO_JITTER,
        aliases=("MiniMaxM1", "minimax_text_01", "MiniMaxText01"),
        layers="attn_type_list",
        lightning=True,
        partial_rotary=True,
        rope_theta=1_000_000.0,
    ),
)
KINDS: dict[str, dict[Any, LayerKind]] = {
    "attn_type_list": {0: "lightning", 1: "softmax"},
    "layer_types": {"linear_attention": "lightning", "full_attention": "softmax"},
}


def architecture(model_type: Any, where: Path) -> Architecture:
    """The architecture of that name; a `UserError` that names the nearest for any other."""
    known = {name: a for a in ARCHITECTURES for name in (a.model_type, *a.aliases)}
    if model_type not in known:
        raise UserError(
            f"{where}: model_type {model_type!r} is not one of {', '.join(sorted(known))}."
            f"{nearest(str(model_type), known)}"
        )
    return known[model_type]
