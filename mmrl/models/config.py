"""The shape of a decoder: MiniMax-M1, MiniMax-M2, Qwen and Llama are configs of one model."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["lightning", "softmax"]
Remat = Literal["none", "full", "projections", "products"]
LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down", "qkv", "output_gate"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (arXiv 2106.09685): y = W x + alpha / rank · B A x, only A and B trained.

    `targets` are projections: q, k, v and o of attention (o of lightning layers too), their qkv and
    output_gate, and the gate, up and down of dense MLPs. None is all that the model has; the
    experts, the router and the head take no adapter.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[LoraTarget, ...] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.targets is not None and len(set(self.targets)) != max(len(self.targets), 1):
            raise ValueError(f"targets must name each projection once, got {self.targets}")

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched for longer contexts than a model was pretrained on.

    "linear" divides them all by `factor` (arXiv 2306.15595). "llama3" divides those that turn less
    than `low_freq_factor` times in `original_context` tokens, keeps those that turn more than
    `high_freq_factor` times, and interpolates between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self):
        if self.factor <= 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope scaling needs factor > 0 and 0 < low_freq_factor < high_freq_factor: {self}"
            )


# The fields that say how a decoder computes and not what: no checkpoint depends on them.
HOW_IT_COMPUTES = ("param_dtype", "dtype", "head_dtype", "remat", "scan_layers", "loop_copies")


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and choices of a `Decoder`.

    `layer_pattern` is the repeating group of layer kinds. Groups are scanned, and within a group
    each run of equal layers (`runs`), so compile time follows the runs and not the depth. Without
    `scan_layers` each layer is compiled for itself, which for a few layers on a CPU makes an update
    a tenth faster. With `loop_copies` decoding reads a copy of the layers' weights, cast to `dtype`
    and where the platform wants it cut apart, made once a rollout or for a served model; without,
    every token casts and cuts them again, and the memory of the copy is saved.

    `intermediate_size` is the width of the MLP, or of one expert where `num_experts` > 0.
    With `postnorm` the residual is the normed input (MiniMax-M1, `alpha * x + beta * f(x)` with
    x = norm(h)); without, it is h itself and alpha and beta are 1.

    `attention_bias` is on q, k and v, `attention_out_bias` on the output projection.
    `normalise_top_k` makes the weights of a token's experts sum to 1. `context_length`, the tokens
    that the model was made for, limits nothing here; it is part of what an export says.
    `remat` is what the backward pass computes again, layer by layer, to keep less: "none" nothing,
    "full" all but the layer's input, "projections" all but the products with weight matrices (those
    of experts are computed again), "products" all but products of any kind.
    `head_dtype` is of the product with the head and of the logits; "bfloat16" is what MiniMax-M1's
    float32 head mends, and is here to compare with.
    `lora` adds adapters to projections; training then changes nothing else.
    `lightning_slopes` names the decay rates' formula (`mmrl.models.attention.layer_slopes`).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    layer_pattern: tuple[LayerKind, ...] = ("softmax",)
    scan_layers: bool = True
    loop_copies: bool = True
    rope_theta: float = 10_000.0
    rotary_dim: int | None = None
    rope_scaling: RopeScaling | None = None
    context_length: int | None = None
    lightning_slopes: Literal["m1", "transformers"] = "m1"
    attention_bias: bool = False
    attention_out_bias: bool = False
    qk_norm: Literal["none", "head", "width"] = "none"
    num_experts: int = 0
    experts_per_token: int = 2
    router: Literal["softmax", "sigmoid"] = "softmax"
    router_bias: bool = False
    normalise_top_k: bool = True
    load_balance_coefficient: float = 0.0
    shared_expert_size: int = 0
    postnorm: bool = False
    softmax_alpha: float = 1.0
    softmax_beta: float = 1.0
    lightning_alpha: float = 1.0
    lightning_beta: float = 1.0
    mlp_alpha: float = 1.0
    mlp_beta: float = 1.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float32", "bfloat16"] = "float32"
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    lora: LoraConfig | None = None

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.layer_pattern or self.num_layers % len(self.layer_pattern):
            raise ValueError(
                f"num_layers={self.num_layers} must be a multiple of the {len(self.layer_pattern)} "
                "layers of layer_pattern"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.rotary_width % 2 or not 0 <= self.rotary_width <= self.head_dim:
            raise ValueError(
                f"rotary_dim={self.rotary_dim} must be even and at most head_dim={self.head_dim}"
            )
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must lie in 1..{self.num_experts}"
            )
        for target in self.lora_targets:
            if target not in self.projections:
                raise ValueError(
                    f"lora: this model has no projection {target!r}"
                    f"{', and experts take no adapters' if self.num_experts else ''}; "
                    f"targets may be {', '.join(self.projections)}"
                )

    @property
    def rotary_width(self) -> int:
        """Leading dimensions of each head that rotate."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def projections(self) -> tuple[LoraTarget, ...]:
        """The projections that an adapter may be added to."""
        lightning: tuple[LoraTarget, ...] = ("qkv", "output_gate")
        softmax: tuple[LoraTarget, ...] = ("q", "k", "v")
        dense: tuple[LoraTarget, ...] = ("gate", "up", "down")
        return (
            *(lightning if "lightning" in self.layer_pattern else ()),
            *(softmax if "softmax" in self.layer_pattern else ()),
            "o",
            *(() if self.num_experts else dense),
        )

    @property
    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """The projections that have an adapter: none without `lora`."""
        if self.lora is None:
            return ()
        return self.projections if self.lora.targets is None else self.lora.targets

    @property
    def num_groups(self) -> int:
        """Times that `layer_pattern` repeats."""
        return self.num_layers // len(self.layer_pattern)

    @property
    def runs(self) -> tuple[tuple[LayerKind, int], ...]:
        """The pattern as runs of equal layers: (("lightning", 7), ("softmax", 1)) for M1."""
        return tuple((kind, len(list(run))) for kind, run in itertools.groupby(self.layer_pattern))


def deepnorm_alpha(num_layers: int) -> float:
    """DeepNorm's residual scale (2N)^(1/4) (arXiv 2203.00555); 160^0.25 for M1's 80 layers."""
    return (2 * num_layers) ** 0.25


def minimax_m1(**changes) -> DecoderConfig:
    """MiniMax-M1 and MiniMax-Text-01: 456B parameters, 45.9B active (MiniMax-M1-80k/config.json).

    Pass `num_layers` to shrink it: the residual scales follow DeepNorm's formula for that depth.
    """
    alpha = deepnorm_alpha(changes.get("num_layers", 80))
    m1 = DecoderConfig(
        vocab_size=200_064,
        hidden_size=6144,
        num_layers=changes.pop("num_layers", 80),
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=9216,
        layer_pattern=("lightning",) * 7 + ("softmax",),
        rope_theta=10_000_000.0,
        rotary_dim=64,
        num_experts=32,
        experts_per_token=2,
        load_balance_coefficient=0.001,
        postnorm=True,
        softmax_alpha=alpha,
        lightning_alpha=alpha,
        mlp_alpha=alpha,
        norm_eps=1e-5,
        param_dtype="bfloat16",
        dtype="bfloat16",
        remat="full",
    )
    return dataclasses.replace(m1, **changes)
