"""Adapters as files of the `peft` library: adapter_config.json and adapter_model.safetensors.

The tensors of an adapted weight X.weight are base_model.model.X.lora_A.weight [R, inputs] and
base_model.model.X.lora_B.weight [outputs, R].
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmrl.errors import UserError
from mmrl.models.config import DecoderConfig, LoraConfig, LoraTarget
from mmrl.models.decoder import Decoder
from mmrl.models.lora import WEIGHTS, adapted_weight, adapter_name
from mmrl.models.pretrained.layout import Layout
from mmrl.models.pretrained.matching import match
from mmrl.models.pretrained.names import TABLE, Parameter, Spelling, parameters
from mmrl.models.pretrained.safetensors import SINGLE, open_safetensors, write_safetensors
from mmrl.models.pretrained.save import on_host, replacing
from mmrl.models.pretrained.tensors import LazyTensor, TensorSpec
from mmrl.sharding import placement

CONFIG, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

# Fields of adapter_config.json that, where they are set, mean maths that the decoder does not do.
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
)


def load_peft(directory: str | Path, base: Decoder, mesh: Mesh | None = None) -> Decoder:
    """The base model, whose arrays it shares, with the adapters in `directory`.

    Targets are those that the tensors name, in all layers; adapters become float32, laid out on
    `mesh` by `mmrl.sharding`. Raises `UserError` with the file, what was expected and what was
    found; ValueError where `base` has adapters already.
    """
    if base.config.lora is not None:
        raise ValueError("load_peft: the base has adapters already; merge them first")
    directory = Path(directory)
    lora = _lora_config(directory / CONFIG)
    tensors = open_safetensors(directory / WEIGHTS_FILE)
    widest = dataclasses.replace(base.config, lora=lora)
    targets = _targets(widest, tensors)
    if not targets:
        raise UserError(
            f"{directory / WEIGHTS_FILE}: expected tensors as "
            f"{next(iter(_table(widest).values()))[0].name.format(i=0)}, "
            f"found {', '.join(list(tensors)[:3])}"
        )
    config = dataclasses.replace(base.config, lora=dataclasses.replace(lora, targets=targets))
    stored = match(adapter_parameters(config), tensors, _table(config), directory / WEIGHTS_FILE)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(nnx.filter_state(abstract, nnx.LoRAParam)))
    for s in stored:
        variable = flat[s.parameter.path]
        value = s.read((slice(None),) * len(variable.shape), np.dtype(np.float32))
        flat[s.parameter.path] = variable.replace(value)
    adapters = nnx.from_flat_state(flat)
    adapters = jax.device_put(adapters, placement(adapters, mesh))
    return nnx.merge(graphdef, nnx.state(base), adapters)


def save_peft(model: Decoder, directory: str | Path, base: str | None = None) -> None:
    """Writes the model's adapters, for `peft.PeftModel.from_pretrained` to load onto its base.

    `base` is the name or path of the base model that the config will give. With several processes
    all must call it, and the first one writes. Raises ValueError for a model without adapters.
    """
    lora = model.config.lora
    if lora is None:
        raise ValueError("save_peft: the model has no adapters (config.lora is None)")
    table = _table(model.config)
    values = dict(nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)))
    specs, arrays = [], []
    for p in adapter_parameters(model.config):
        spelling, value = table[p.key][0], on_host(values[p.path][...])
        for row, layer in enumerate(p.layers or ()):
            name = spelling.name.format(i=layer)
            specs.append(TensorSpec(name, spelling.shape(p), np.dtype(np.float32)))
            arrays.append(spelling.layout.write(value[row]))
    if jax.process_index() != 0:
        return
    modules = {spec.name.split(".")[-3] for spec in specs}
    found = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }
    with replacing(Path(directory)) as partial:
        write_safetensors(partial, specs, arrays, max_shard_bytes=sum(s.nbytes for s in specs))
        (partial / SINGLE).rename(partial / WEIGHTS_FILE)
        (partial / CONFIG).write_text(json.dumps(found, indent=2) + "\n")


def adapter_parameters(config: DecoderConfig) -> tuple[Parameter, ...]:
    """The adapters of `Decoder(config)`: as `names.parameters`, which leaves them out.

    That of the weight with key "softmax.q" has the keys "softmax.q_lora.a" and "softmax.q_lora.b".
    """
    weights = {p.path: p for p in parameters(config)}
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))), nnx.LoRAParam)
    found = []
    for path, variable in nnx.to_flat_state(state):
        weight = weights[adapted_weight(path)]
        shape = variable.get_value().shape[1:]
        key = f"{weight.key}_lora.{path[-1]}"
        found.append(Parameter(path, key, weight.layers, shape, np.dtype(np.float32)))
    return tuple(found)


def _table(config: DecoderConfig) -> dict[str, tuple[Spelling, ...]]:
    """`names.TABLE` of the adapters of `config`, by their keys."""
    return {p.key: (_spelling(p.key),) for p in adapter_parameters(config)}


def _spelling(key: str) -> Spelling:
    """The weight's name and layout, one side of which is the rank's axis r."""
    weight, matrix = key.split("_lora.")
    spelling = TABLE[weight][0]
    outputs, inputs = spelling.layout.sides[0]
    side = inputs if matrix == "a" else outputs
    rows = f"({' '.join(side)})" if len(side) > 1 else side[0]
    axes = " ".join(side)
    layout = Layout(f"r {rows} -> {axes} r" if matrix == "a" else f"{rows} r -> r {axes}")
    name = f"{spelling.name.removesuffix('.weight')}.lora_{matrix.upper()}.weight"
    return Spelling(f"base_model.model.{name}", layout)


def _targets(config: DecoderConfig, tensors: dict[str, LazyTensor]) -> tuple[LoraTarget, ...]:
    """Of the targets of `config`, those that any tensor belongs to."""
    table = _table(config)
    there = {
        p.path[2:4]
        for p in adapter_parameters(config)
        for layer in p.layers or ()
        if table[p.key][0].name.format(i=layer) in tensors
    }
    names = {target: (part, adapter_name(name)) for target, (part, name, _) in WEIGHTS.items()}
    return tuple(target for target in config.lora_targets if names[target] in there)


def _lora_config(file: Path) -> LoraConfig:
    """Rank and scale of an adapter_config.json, with all targets."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected the config of a peft adapter: {error}") from error
    if found.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type must be 'LORA', found {found.get('peft_type')!r}")
    wrong = [name for name in UNSUPPORTED if found.get(name)]
    wrong += ["bias"] if found.get("bias", "none") != "none" else []
    if wrong:
        raise UserError(
            f"{file}: {wrong[0]}={found[wrong[0]]!r} is not supported; merge the adapter with peft "
            "(merge_and_unload) and load the result"
        )
    rank, alpha = found.get("r"), found.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{file}: expected numbers r ≥ 1 and lora_alpha, found {rank} and {alpha}")
    # Rank-stabilised LoRA scales by alpha / sqrt(rank) (arXiv 2312.03732).
    return LoraConfig(rank, alpha * rank**0.5 if found.get("use_rslora") else float(alpha))
