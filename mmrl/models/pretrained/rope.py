"""The rotary embedding in config.json: both spellings, whole and partial, and its scalings.

transformers 5 writes `rope_parameters` {rope_type, rope_theta, …}; before, `rope_theta` stood at
the top and `rope_scaling` beside it. Written is the older spelling, which every version reads.
"""

from pathlib import Path
from typing import Any

from mmrl.errors import UserError, nearest
from mmrl.models.config import DecoderConfig

KINDS = ("default", "linear", "llama3")
# RopeScaling's fields and their names for llama3.
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}


def from_hf(
    config_json: dict[str, Any], theta: float, partial: bool, head_dim: int, where: Path
) -> dict[str, Any]:
    """`rope_theta`, `rotary_dim` and `rope_scaling` of a decoder's config.

    `theta` is the architecture's default, `partial` whether it rotates a part of each head: the
    first of `partial_rotary_factor` (in either place) and `rotary_dim` that is there says how much.
    """
    found = config_json.get("rope_scaling") or config_json.get("rope_parameters") or {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        raise UserError(f"{where}: rope_parameters must be the same for all layers, found {found}")
    factor = found.get("partial_rotary_factor", config_json.get("partial_rotary_factor"))
    width = config_json.get("rotary_dim") if factor is None else int(head_dim * factor)
    if not partial and width not in (None, head_dim):
        raise UserError(
            f"{where}: expected an architecture that rotates whole heads, found {width} of "
            f"{head_dim} dimensions (rotary_dim or partial_rotary_factor)"
        )
    return {
        "rope_theta": found.get("rope_theta") or config_json.get("rope_theta") or theta,
        "rotary_dim": width if partial else None,
        "rope_scaling": _scaling(found, config_json, where),
    }


def _scaling(
    found: dict[str, Any], config_json: dict[str, Any], where: Path
) -> dict[str, Any] | None:
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in KINDS:
        raise UserError(
            f"{where}: rope type {kind!r} is not supported; expected one of {', '.join(KINDS)}."
            f"{nearest(str(kind), KINDS)}"
        )
    if kind == "default":
        return None
    names = {"factor": "factor"} if kind == "linear" else LLAMA3
    values = {"original_max_position_embeddings": config_json.get("max_position_embeddings")}
    values |= {name: value for name, value in found.items() if value is not None}
    for name in names.values():
        if values.get(name) is None:
            raise UserError(f"{where}: rope type {kind!r} needs {name!r}, found {found}")
    return {"kind": kind} | {ours: values[theirs] for ours, theirs in names.items()}


def to_hf(config: DecoderConfig, partial: bool) -> dict[str, Any]:
    """The fields of config.json for this decoder's rotary embedding."""
    found: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    if partial:
        found["rotary_dim"] = config.rotary_width
    scaling = config.rope_scaling
    if scaling is not None:
        names = {"factor": "factor"} if scaling.kind == "linear" else LLAMA3
        values = {theirs: getattr(scaling, ours) for ours, theirs in names.items()}
        found["rope_scaling"] = {"rope_type": scaling.kind, **values}
    return found
