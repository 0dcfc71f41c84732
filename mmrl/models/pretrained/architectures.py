"""Hugging Face's architectures as configs of the one decoder, and a decoder's config as theirs.

`ARCHITECTURES` says for each what its config.json calls the decoder's fields. Both directions read
that table, and a config is exported as the first architecture that reads back as itself.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrl.annotations import convert
from mmrl.errors import UserError, nearest
from mmrl.models.config import DecoderConfig, LayerKind
from mmrl.models.pretrained import rope

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


def config_from_hf(config_json: dict[str, Any], where: Path) -> DecoderConfig:
    """The decoder of a config.json, in float32; `where` is the file that errors name.

    Raises `UserError` for an unknown architecture, a field that is missing or of the wrong type,
    and any value that asks for maths that the decoder does not do.
    """
    a = architecture(config_json.get("model_type"), where)
    _check_allowed(a, config_json, where)
    values = dict(a.fixed)
    for f in a.all_fields:
        values[f.ours] = _value(f, config_json, where)
    heads = values["num_heads"]
    values["num_kv_heads"] = _value(Field("", "num_key_value_heads", heads), config_json, where)
    head_dim = a.head_dim or values["hidden_size"] // max(heads, 1)
    values["head_dim"] = _value(Field("", "head_dim", head_dim), config_json, where)
    if "shared_expert_size" in values:
        values["shared_expert_size"] = _shared_size(config_json, where)
    values["layer_pattern"] = _layer_pattern(a, config_json, values["num_layers"], where)
    values |= rope.from_hf(config_json, a.rope_theta, a.partial_rotary, values["head_dim"], where)
    try:
        return convert(DecoderConfig, values, "config", plain=True)
    except ValueError as error:
        raise UserError(f"{where}: {str(error).removeprefix('config.')}") from error


def _value(f: Field, config_json: dict[str, Any], where: Path) -> Any:
    spelled = [f.theirs] if f.other is None else [f.theirs, f.other]
    names = [name for name in spelled if config_json.get(name) is not None]
    if not names and f.default is REQUIRED:
        there = [name for name, value in config_json.items() if value is not None]
        raise UserError(f"{where}: has no {f.theirs!r}.{nearest(f.theirs, there)}")
    value = config_json[names[0]] if names else f.default
    whole = f.default is REQUIRED or type(f.default) is int
    if whole and type(value) is not int and f.ours != "shared_expert_size":
        raise UserError(f"{where}: {names[0]} must be an integer, found {value!r}")
    return value


def _check_allowed(a: Architecture, config_json: dict[str, Any], where: Path) -> None:
    for name, values in a.all_allowed.items():
        found = config_json.get(name)
        if found is not None and found not in values:
            expected = " or ".join("absent" if v is None else repr(v) for v in values)
            raise UserError(
                f"{where}: {name} must be {expected} for {a.model_type}, found {found!r}: the "
                "decoder does not compute that"
            )
    quantised = (config_json.get("quantization_config") or {}).get("quant_method")
    if quantised not in (None, "fp8"):
        raise UserError(
            f"{where}: quantisation {quantised!r} is not supported; expected fp8 or none: take the "
            "unquantised checkpoint"
        )
    window = config_json.get("sliding_window")
    if config_json.get("use_sliding_window") and window is not None and _windowed(config_json):
        raise UserError(
            f"{where}: sliding_window={window} is in use (use_sliding_window is true), but the "
            "decoder attends to the whole context"
        )


def _windowed(config_json: dict[str, Any]) -> bool:
    """Whether any layer of a Qwen model has the sliding window."""
    types = config_json.get("layer_types")
    if types is not None:
        return "sliding_attention" in types
    first = config_json.get("max_window_layers")
    return first is None or first < config_json.get("num_hidden_layers", 0)


def _shared_size(config_json: dict[str, Any], where: Path) -> int:
    """`shared_intermediate_size` is an int, or a list of one or of one for each layer."""
    found = config_json.get("shared_intermediate_size") or 0
    sizes = set(found) if isinstance(found, list) else {found}
    if len(sizes) != 1:
        raise UserError(
            f"{where}: shared_intermediate_size must be the same in all layers, found {found}"
        )
    (size,) = sizes
    mode = config_json.get("shared_moe_mode", "sigmoid")
    if size and mode != "sigmoid":
        raise UserError(f"{where}: shared_moe_mode must be 'sigmoid', found {mode!r}")
    return size


def _layer_pattern(
    a: Architecture, config_json: dict[str, Any], depth: int, where: Path
) -> tuple[LayerKind, ...]:
    """The smallest period of the layers' kinds."""
    found = config_json.get(a.layers) if a.layers else None
    if a.layers is None or (found is None and not a.lightning):
        return ("softmax",)
    listed: list = found if isinstance(found, list) else []
    if found is None and a.layers == "layer_types":
        # transformers' default begins with full attention, unlike any MiniMax release.
        listed = [("full_attention", "linear_attention")[i % 2] for i in range(depth)]
    kinds = {name: k for name, k in KINDS[a.layers].items() if a.lightning or k == "softmax"}
    wrong = [repr(kind) for kind in listed if kind not in kinds]
    if len(listed) != depth or wrong:
        raise UserError(
            f"{where}: {a.layers} must list {' or '.join(map(repr, kinds))} for each of the "
            f"{depth} layers, found {wrong[0] if wrong else f'{len(listed)} layers'}"
        )
    return smallest_period(tuple(kinds[kind] for kind in listed))


def smallest_period(kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """The shortest pattern that repeats to `kinds`."""
    sizes = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0)
    return next(kinds[:n] for n in sizes if kinds[:n] * (len(kinds) // n) == kinds)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """config.json of the first architecture that this decoder is one of.

    Compute dtype, parameter dtype, rematerialisation and adapters have no place in it. Raises
    `UserError` with the fields that stand in the way if there is none.
    """
    wanted = canonical(config)
    best: list[str] | None = None
    for a in ARCHITECTURES:
        found = to_architecture(wanted, a)
        read = canonical(config_from_hf(found, Path("config.json")))
        names = [f.name for f in dataclasses.fields(DecoderConfig)]
        wrong = [n for n in names if getattr(read, n) != getattr(wanted, n)]
        if not wrong:
            return found
        if best is None or len(wrong) < len(best) - 1:
            best = [a.model_type, *wrong]
    assert best is not None
    fields = ", ".join(f"{name}={getattr(wanted, name)!r}" for name in best[1:])
    raise UserError(
        f"no Hugging Face architecture has this decoder; the nearest, {best[0]}, differs in "
        f"{fields}"
    )


def canonical(config: DecoderConfig) -> DecoderConfig:
    """The config without what no config.json says, and with what makes no difference at default."""
    default = {f.name: f.default for f in dataclasses.fields(DecoderConfig)}
    kinds = config.layer_pattern * config.num_groups
    reset = ["param_dtype", "dtype", "remat", "lora"]
    if "lightning" not in kinds:
        reset += ["lightning_alpha", "lightning_beta", "lightning_slopes"]
    if not config.num_experts:
        reset += ["experts_per_token", "router", "router_bias", "normalise_top_k"]
        reset += ["load_balance_coefficient", "shared_expert_size"]
    changes: dict[str, Any] = {name: default[name] for name in reset}
    return dataclasses.replace(
        config, layer_pattern=smallest_period(kinds), rotary_dim=config.rotary_width, **changes
    )


def to_architecture(config: DecoderConfig, a: Architecture) -> dict[str, Any]:
    """config.json of `a` with the config's values, whether or not it is one of its models."""
    found: dict[str, Any] = {"architectures": [a.class_name], "model_type": a.model_type}
    found |= {name: values[0] for name, values in a.all_allowed.items()}
    for f in a.all_fields:
        value = getattr(config, f.ours)
        if value is not None:
            found[f.theirs] = value
    found |= {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim}
    if a.layers:
        names = {kind: name for name, kind in KINDS[a.layers].items()}
        kinds = config.layer_pattern * config.num_groups
        if a.lightning or "lightning" not in kinds:
            found[a.layers] = [names[kind] for kind in kinds]
    return found | rope.to_hf(config, a.partial_rotary)
