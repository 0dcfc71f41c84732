"""config.json as a decoder's config, and back, by the table of `architectures`.

A config is exported as the first architecture that reads back as itself.
"""

import dataclasses
from pathlib import Path
from typing import Any

from mmrl.annotations import convert
from mmrl.errors import UserError, nearest
from mmrl.models.config import HOW_IT_COMPUTES, DecoderConfig, LayerKind
from mmrl.models.pretrained import rope
from mmrl.models.pretrained.architectures import (
    ARCHITECTURES,
    KINDS,
    REQUIRED,
    Architecture,
    Field,
    architecture,
)


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

    How it computes and adapters have no place in it. Raises `UserError` with the fields that stand
    in the way if there is none.
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
    reset = [*HOW_IT_COMPUTES, "lora"]
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
