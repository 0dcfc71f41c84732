"""FLOPs of a decoder by part, from its config alone: 2 a multiply-add, matrix products only.

Norms, activations, softmax's exponentials and the optimizer are left out; none is a product, and
together they are below 1% of a large model's. What the forward pass multiplies is counted as the
code does it (`mmrl.models`, `pallas_kernels`), so that the counts equal those of its jaxpr.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mmrl.models import DecoderConfig
from mmrl.models.experts import FEW_TOKENS

Visible = Literal["causal", "all"]
CHUNK = 128  # tokens of lightning attention's blocks on an accelerator


@dataclass(frozen=True)
class Flops:
    """FLOPs by part: attention's projections, the lightning recurrence, softmax over context, the
    router and its choice, the MLP or the experts, the output head."""

    projections: float = 0.0
    lightning: float = 0.0
    softmax: float = 0.0
    router: float = 0.0
    mlp: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    @property
    def float32(self) -> float:
        """Those computed in float32 at highest precision whatever the compute dtype."""
        return self.router + self.head

    def __add__(self, other: "Flops") -> "Flops":
        parts = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Flops(*(a + b for a, b in parts))

    def __mul__(self, factor: float) -> "Flops":
        return Flops(*(factor * x for x in dataclasses.astuple(self)))


def forward_flops(
    config: DecoderConfig,
    rows: int,
    tokens: int,
    *,
    context: int = 0,
    head: bool = True,
    visible: Visible = "causal",
    chunk: int = CHUNK,
) -> Flops:
    """FLOPs of reading `tokens` new tokens in each of `rows` rows, after `context` earlier ones.

    `visible`: "causal" counts the pairs of query and key that the result needs, "all" those of the
    whole rectangle of tokens x (context + tokens). `head` is whether logits are computed.
    """
    new = rows * tokens
    lightning, softmax = _layers(config)
    adapters = 2 * sum(_adapter_weights(config).values()) if config.lora else 0
    return Flops(
        projections=new * (2 * sum(_attention_weights(config)) + adapters),
        lightning=lightning * config.num_heads * rows * _recurrence(config, tokens, chunk),
        softmax=softmax * rows * 4 * config.num_heads * config.head_dim
        * _pairs(tokens, context, visible),
        router=new * config.num_layers * sum(_router(config, new)),
        mlp=new * config.num_layers * sum(_mlp(config, new)),
        head=new * 2 * config.vocab_size * config.hidden_size if head else 0,
    )  # fmt: skip


def backward_flops(
    config: DecoderConfig,
    rows: int,
    tokens: int,
    *,
    context: int = 0,
    head: bool = True,
    visible: Visible = "causal",
    chunk: int = CHUNK,
) -> Flops:
    """FLOPs of the gradients of that forward pass, recomputation not counted.

    A product has two gradients, with LoRA only that of its input where its weight is frozen. A
    softmax layer takes 5 products for 2 (the scores once more), lightning attention's three
    gradients 11 for 4.
    """
    new = rows * tokens
    lightning, softmax = _layers(config)
    gradients = 1 if config.lora else 2
    logits, choice = _router(config, new)
    experts, combine = _mlp(config, new)
    adapters = 4 * sum(_adapter_weights(config).values()) if config.lora else 0
    return Flops(
        projections=new * (2 * gradients * sum(_attention_weights(config)) + adapters),
        lightning=lightning * config.num_heads * rows * _recurrence_gradient(config, tokens, chunk),
        softmax=softmax * rows * 10 * config.num_heads * config.head_dim
        * _pairs(tokens, context, visible),
        router=new * config.num_layers * (gradients * logits + choice),
        mlp=new * config.num_layers * (gradients * experts + 2 * combine),
        head=new * 2 * gradients * config.vocab_size * config.hidden_size if head else 0,
    )  # fmt: skip


def recomputed_flops(config: DecoderConfig, rows: int, tokens: int, **options) -> Flops:
    """FLOPs that `config.remat` does twice.

    "full": all layers, but for the products whose results only leave the layer: a dense MLP's last,
    with its adapter, or the weighted sum over experts. "projections" spares what is multiplied by a
    weight matrix, the experts' aside, "products" all.
    """
    if config.remat in ("none", "products"):
        return Flops()
    again = forward_flops(config, rows, tokens, **{**options, "head": False})
    new = rows * tokens
    layers = new * config.num_layers
    if config.remat == "projections":
        few, experts, combine = _few(config, new), 0, 0
        if config.num_experts:
            used = config.num_experts if few else config.experts_per_token
            experts = used * 6 * config.hidden_size * config.intermediate_size
            combine = _mlp(config, new)[1] if config.shared_expert_size else 0
        choice = _router(config, new)[1] / 2 if few and config.num_experts else 0
        return dataclasses.replace(
            again, projections=0.0, router=layers * choice, mlp=layers * (experts + combine)
        )
    left_out, adapter = 0, 0
    if not config.num_experts:
        left_out = 2 * config.intermediate_size * config.hidden_size
        if config.lora and "down" in config.lora_targets:
            adapter = 2 * config.lora.rank * config.hidden_size
    elif not config.shared_expert_size:
        left_out = _mlp(config, new)[1]
    return dataclasses.replace(
        again,
        projections=again.projections - layers * adapter,
        mlp=again.mlp - layers * left_out,
    )


def decode_flops(config: DecoderConfig, rows: int, tokens: int, *, context: int = 0) -> Flops:
    """FLOPs of writing `tokens` tokens one by one in each row, the first after `context` others."""
    one = forward_flops(config, rows, 1)
    _, softmax = _layers(config)
    pairs = _pairs(tokens, context, "causal")
    return dataclasses.replace(
        one * tokens, softmax=softmax * rows * 4 * config.num_heads * config.head_dim * pairs
    )


@dataclass(frozen=True)
class Workload:
    """One RL step: `prompts` of `prompt_length` tokens with `group_size` responses each."""

    prompts: int
    group_size: int
    prompt_length: int
    response_length: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    @property
    def response_tokens(self) -> int:
        return self.rows * self.response_length


def step_flops(
    config: DecoderConfig, work: Workload, *, recompute: bool = True
) -> dict[str, Flops]:
    """FLOPs of a step's phases: `prefill`, `decode` and `update` (one pass over all responses).

    Each prompt is read once a group, by sampler and trainer alike, and has no logits. Without
    `recompute` the update's are the model's own, as MFU counts them.
    """
    prompts, width = work.prompts, work.prompt_length
    rows, length = work.rows, work.response_length
    prefill = forward_flops(config, prompts, width, head=False)
    update = prefill + backward_flops(config, prompts, width, head=False)
    update += forward_flops(config, rows, length, context=width)
    update += backward_flops(config, rows, length, context=width)
    if recompute:
        update += recomputed_flops(config, prompts, width)
        update += recomputed_flops(config, rows, length, context=width)
    decode = decode_flops(config, rows, length, context=width)
    return {"prefill": prefill, "decode": decode, "update": update}


def _layers(config: DecoderConfig) -> tuple[int, int]:
    """How many layers are lightning and how many softmax."""
    softmax = config.num_groups * config.layer_pattern.count("softmax")
    return config.num_layers - softmax, softmax


def _attention_weights(config: DecoderConfig) -> tuple[int, int]:
    """Weights of the projections of all lightning layers and of all softmax layers."""
    lightning, softmax = _layers(config)
    m, d = config.hidden_size, config.head_dim
    query, kv = config.num_heads * d, config.num_kv_heads * d
    return lightning * m * (3 * query + 2 * query), softmax * m * (2 * query + 2 * kv)


def _adapter_weights(config: DecoderConfig) -> dict[str, int]:
    """Weights of all adapters by target: rank x (inputs + outputs) for each layer that has it."""
    if config.lora is None:
        return {}
    lightning, softmax = _layers(config)
    m, f, d = config.hidden_size, config.intermediate_size, config.head_dim
    query, kv = config.num_heads * d, config.num_kv_heads * d
    sizes = {
        "qkv": lightning * (m + 3 * query),
        "output_gate": lightning * (m + query),
        "q": softmax * (m + query),
        "k": softmax * (m + kv),
        "v": softmax * (m + kv),
        "o": config.num_layers * (query + m),
        "gate": config.num_layers * (m + f),
        "up": config.num_layers * (m + f),
        "down": config.num_layers * (f + m),
    }
    return {target: config.lora.rank * sizes[target] for target in config.lora_targets}


def _few(config: DecoderConfig, batch_tokens: int) -> bool:
    """Whether all tokens go through all experts (`mmrl.models.experts`)."""
    return batch_tokens <= FEW_TOKENS and config.num_experts <= 2 * config.experts_per_token


def _router(config: DecoderConfig, batch_tokens: int) -> tuple[int, int]:
    """FLOPs a token and layer: the logits, and the choice by products with one-hot rows."""
    e = config.num_experts
    if not e:
        return 0, 0
    choices = 2 if _few(config, batch_tokens) else 1
    return 2 * config.hidden_size * e, choices * 2 * config.experts_per_token * e


def _mlp(config: DecoderConfig, batch_tokens: int) -> tuple[int, int]:
    """FLOPs a token and layer: products with weights, and the weighted sum over experts."""
    m, e, k = config.hidden_size, config.num_experts, config.experts_per_token
    one = 6 * m * config.intermediate_size
    if not e:
        return one, 0
    shared = 6 * m * config.shared_expert_size + (2 * m if config.shared_expert_size else 0)
    used = e if _few(config, batch_tokens) else k
    return used * one + shared, 2 * used * m


def _pairs(tokens: int, context: int, visible: Visible) -> int:
    """Pairs of a query and a key of one row."""
    if visible == "all":
        return tokens * (context + tokens)
    return tokens * context + tokens * (tokens + 1) // 2


def _chunks(tokens: int, chunk: int) -> list[tuple[int, int]]:
    """(how many, of what length) the blocks of lightning attention are."""
    size = min(tokens, chunk)
    return [(tokens // size, size), (1, tokens % size)] if tokens else []


def _recurrence(config: DecoderConfig, tokens: int, chunk: int) -> int:
    """FLOPs of a lightning head and row.

    A block of C tokens multiplies C x C scores twice and the state twice, for reading and writing.
    One token alone reads, writes and decays the state: 5 d² (no products but the first).
    """
    d = config.head_dim
    if tokens == 1:
        return 5 * d * d
    return sum(n * (4 * c * c * d + 4 * c * d * d) for n, c in _chunks(tokens, chunk))


def _recurrence_gradient(config: DecoderConfig, tokens: int, chunk: int) -> int:
    """As `_recurrence`: dq takes what the forward pass does, dk and dv share a state."""
    d = config.head_dim
    return sum(n * (12 * c * c * d + 10 * c * d * d) for n, c in _chunks(tokens, chunk))
