"""The one table of weight names: which tensors of a checkpoint hold which parameter, and how.

Reading and writing both follow it. A parameter is named by its path in a layer, its module by kind:
`lightning` and `softmax` attention, `mlp` or `experts`.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from mmrl.models.config import DecoderConfig
from mmrl.models.decoder import Decoder
from mmrl.models.pretrained.layout import Layout

LAYER = "model.layers.{i}."


@dataclass(frozen=True)
class Spelling:
    """A tensor's name, with {i} for the layer and {e} for the expert, and its layout.

    `qwen`: written for qwen3_moe, which names its experts otherwise; else the first is written.
    """

    name: str
    layout: Layout
    qwen: bool = False

    @property
    def per_expert(self) -> bool:
        """Whether each expert has a tensor of its own, and the layout is that of one."""
        return "{e}" in self.name

    def shape(self, parameter: "Parameter") -> tuple[int, ...]:
        """The shape of its tensors."""
        shape = parameter.shape[1:] if self.per_expert else parameter.shape
        return self.layout.tensor_shape(shape)

    def names(self, parameter: "Parameter", layer: int | None) -> list[str]:
        """The names of a layer's tensors."""
        experts = range(parameter.experts or 1) if self.per_expert else (None,)
        return [self.name.format(i=layer, e=expert) for expert in experts]


def _layer(name: str, formula: str, select: int = 0, *, qwen: bool = False) -> Spelling:
    return Spelling(LAYER + name, Layout(formula, select), qwen)


def _expert_projection(
    minimax: str, qwen: str, formula: str, fused: str, layout: Layout
) -> tuple[Spelling, ...]:
    """One of the experts' matrices: a tensor for each expert, or one of all, in both modules."""
    modules = ("block_sparse_moe", "mlp")
    return (
        *(_layer(f"{module}.experts.{{e}}.{minimax}.weight", formula) for module in modules),
        _layer(f"mlp.experts.{{e}}.{qwen}.weight", formula, qwen=True),
        *(Spelling(f"{LAYER}{module}.experts.{fused}", layout) for module in modules),
    )


TABLE: dict[str, tuple[Spelling, ...]] = {
    "embedding": (Spelling("model.embed_tokens.weight", Layout("v m -> v m")),),
    "final_norm": (Spelling("model.norm.weight", Layout("m -> m")),),
    "head": (Spelling("lm_head.weight", Layout("v m -> v m")),),
    "input_norm.weight": (_layer("input_layernorm.weight", "m -> m"),),
    "post_attention_norm.weight": (_layer("post_attention_layernorm.weight", "m -> m"),),
    # Head by head: the rows of each are its q, k and v, c = 3d of them.
    "lightning.qkv": (_layer("self_attn.qkv_proj.weight", "(h c) m -> m h c"),),
    "lightning.gate": (_layer("self_attn.output_gate.weight", "(h d) m -> m h d"),),
    "lightning.norm.weight": (_layer("self_attn.norm.weight", "n -> n"),),
    "lightning.out": (_layer("self_attn.out_proj.weight", "m (h d) -> h d m"),),
    "softmax.q": (_layer("self_attn.q_proj.weight", "(h d) m -> m h d"),),
    "softmax.k": (_layer("self_attn.k_proj.weight", "(h d) m -> m h d"),),
    "softmax.v": (_layer("self_attn.v_proj.weight", "(h d) m -> m h d"),),
    "softmax.out": (_layer("self_attn.o_proj.weight", "m (h d) -> h d m"),),
    "softmax.q_bias": (_layer("self_attn.q_proj.bias", "(h d) -> h d"),),
    "softmax.k_bias": (_layer("self_attn.k_proj.bias", "(h d) -> h d"),),
    "softmax.v_bias": (_layer("self_attn.v_proj.bias", "(h d) -> h d"),),
    "softmax.out_bias": (_layer("self_attn.o_proj.bias", "m -> m"),),
    "softmax.q_norm.weight": (_layer("self_attn.q_norm.weight", "n -> n"),),
    "softmax.k_norm.weight": (_layer("self_attn.k_norm.weight", "n -> n"),),
    "mlp.gate": (_layer("mlp.gate_proj.weight", "f m -> m f"),),
    "mlp.up": (_layer("mlp.up_proj.weight", "f m -> m f"),),
    "mlp.down": (_layer("mlp.down_proj.weight", "m f -> f m"),),
    "experts.router": (
        _layer("block_sparse_moe.gate.weight", "e m -> m e"),
        _layer("mlp.gate.weight", "e m -> m e", qwen=True),
    ),
    "experts.router_bias": (
        _layer("block_sparse_moe.e_score_correction_bias", "e -> e"),
        _layer("mlp.e_score_correction_bias", "e -> e"),
    ),
    "experts.gate": _expert_projection(
        "w1", "gate_proj", "f m -> m f", "gate_up_proj", Layout("e (t f) m -> e m f", 0)
    ),
    "experts.up": _expert_projection(
        "w3", "up_proj", "f m -> m f", "gate_up_proj", Layout("e (t f) m -> e m f", 1)
    ),
    "experts.down": _expert_projection(
        "w2", "down_proj", "m f -> f m", "down_proj", Layout("e m f -> e f m")
    ),
    "experts.shared.gate": (_layer("shared_mlp.gate_proj.weight", "f m -> m f"),),
    "experts.shared.up": (_layer("shared_mlp.up_proj.weight", "f m -> m f"),),
    "experts.shared.down": (_layer("shared_mlp.down_proj.weight", "m f -> f m"),),
    "experts.shared_coefficient": (_layer("coefficient.weight", "o m -> m o"),),
}

# Buffers that some checkpoints carry and the decoder computes itself (transformers' `minimax`).
IGNORED = (
    r"model\.layers\.\d+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)",
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)

# Stored in float32 by the MiniMax releases, whatever the other weights are (minimax.md 6.1 derives
# it for the gates of M1 from the size of its index).
FLOAT32 = ("experts.router", "experts.router_bias")


def written_spelling(key: str, model_type: str) -> Spelling:
    """How an export for `model_type` names a parameter."""
    spellings = TABLE[key]
    qwen = [s for s in spellings if s.qwen and model_type == "qwen3_moe"]
    return (qwen or list(spellings))[0]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a decoder: its path in the state, its key in `TABLE`, and what it holds.

    `layers` are the model's layers whose values it stacks, in its order, or None for one that
    belongs to no layer; `shape` is without that leading axis; `experts` whether the axis after it
    counts experts.
    """

    path: tuple[Any, ...]
    key: str
    layers: tuple[int, ...] | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def experts(self) -> int | None:
        """Experts that it holds a matrix for, None where it is no expert's."""
        return self.shape[0] if self.key in ("experts.gate", "experts.up", "experts.down") else None


@functools.cache
def parameters(config: DecoderConfig) -> tuple[Parameter, ...]:
    """All parameters of `Decoder(config)`, its adapters left out."""
    config = dataclasses.replace(config, lora=None)
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))), nnx.Param)
    found = []
    flat: list[tuple[tuple[Any, ...], Any]] = list(nnx.to_flat_state(state))
    for path, variable in flat:
        value = variable.get_value()
        layers = run_layers(config, path[1]) if path[0] == "runs" else None
        shape = value.shape if layers is None else value.shape[1:]
        found.append(Parameter(path, _key(config, path), layers, shape, np.dtype(value.dtype)))
    return tuple(found)


def run_layers(config: DecoderConfig, run: int) -> tuple[int, ...]:
    """The model's layers that run `run` of `config.runs` stacks, in its order."""
    lengths = [length for _, length in config.runs]
    first, period = sum(lengths[:run]), len(config.layer_pattern)
    groups = range(config.num_groups)
    return tuple(group * period + first + n for group in groups for n in range(lengths[run]))


def _key(config: DecoderConfig, path: tuple[Any, ...]) -> str:
    if path[0] != "runs":
        return path[0]
    kind = config.runs[path[1]][0]
    modules = {"attention": kind, "mlp": "experts" if config.num_experts else "mlp"}
    return ".".join([modules.get(path[2], path[2]), *path[3:]])
