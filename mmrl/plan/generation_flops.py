"""FLOPs of writing N tokens: MiniMax-M1 against DeepSeek-R1, by several conventions.

The paper (arXiv 2506.13585, figure 1 right) shows a curve and states no formula: "less than 50% of
the FLOPs at 64K tokens" and "approximately 25%" at 100K. The figure's vector data are a polynomial
a N + b N² for each model, to 1e-4 of an axis unit; its unit, 1e16 FLOPs, is UNCONFIRMED but the one
that agrees with 2 FLOPs a weight. What went into a and b is known in part only:

- b is heads x (d_qk + 2 d_v) a softmax layer: the products with the keys halved by causality, those
  with the values not. Exact for R1 and Qwen3-235B; M1's is that of 8 layers and not its 10.
- a is about 2 FLOPs an active weight; M1's exceeds that by 1.0e10, UNCONFIRMED why.

So a ratio is worth something only with its convention. Several are computed here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mmrl.models import minimax_m1, parameter_count
from mmrl.plan.arithmetic import decode_flops

LENGTHS = {"32K": 32 * 1024, "64K": 64 * 1024, "100,000": 100_000, "128K": 128 * 1024}
# (a, b) of a N + b N² in FLOPs, recovered from the figure.
FIGURE = {
    "MiniMax-M1": (1.0455e11, 1.9652e5),
    "DeepSeek-R1": (7.5426e10, 3.4980e6),
    "Qwen3-235B-A22B": (4.3049e10, 2.3102e6),
}


@dataclass(frozen=True)
class LatentAttention:
    """DeepSeek-R1 (arXiv 2412.19437): active parameters with the head and without the embedding,
    and multi-head latent attention's widths for each head.

    Decompressed, as in training, a head compares `d_qk` numbers and sums `d_v`; absorbed, as in its
    decoding, the latent's own 512 + 64 and 512.
    """

    active: float = 36.62e9
    layers: int = 61
    heads: int = 128
    d_qk: int = 192
    d_v: int = 128
    absorbed_qk: int = 576
    absorbed_v: int = 512

    def pairs_flops(self, *, absorbed: bool = False) -> float:
        """FLOPs of attention for each pair of a query and a key, in all layers."""
        width = self.absorbed_qk + self.absorbed_v if absorbed else self.d_qk + self.d_v
        return 2 * self.layers * self.heads * width


R1 = LatentAttention()


@dataclass(frozen=True)
class Convention:
    """A way to count; `m1` and `r1` give FLOPs for a length N."""

    name: str
    counts: str
    m1: Callable[[int], float]
    r1: Callable[[int], float]

    def ratio(self, tokens: int) -> float:
        return self.m1(tokens) / self.r1(tokens)


def figure(model: str, tokens: int) -> float:
    """The paper's curve of that model: FLOPs of writing `tokens` tokens."""
    linear, square = FIGURE[model]
    return linear * tokens + square * tokens**2


def slope(model: str, tokens: int) -> float:
    """The derivative of `figure`: FLOPs of token number `tokens`."""
    linear, square = FIGURE[model]
    return linear + 2 * square * tokens


def conventions() -> list[Convention]:
    """The paper's own curves first; what each counts is in it."""
    m1 = minimax_m1()
    weights = 2 * (parameter_count(m1)[1] + m1.vocab_size * m1.hidden_size)
    layers = m1.layer_pattern.count("softmax") * m1.num_groups
    pair = 4 * layers * m1.num_heads * m1.head_dim

    def rebuilt(linear: float, heads: int, d_qk: int, d_v: int) -> Callable[[int], float]:
        return lambda n: linear * n + heads * (d_qk + 2 * d_v) * n**2

    def causal(n: int) -> float:
        return decode_flops(m1, 1, n).total

    def position(n: int) -> float:
        return decode_flops(m1, 1, 1, context=n - 1).total

    return [
        Convention(
            "figure",
            "the paper's own curves, recovered; total of N tokens",
            lambda n: figure("MiniMax-M1", n),
            lambda n: figure("DeepSeek-R1", n),
        ),
        Convention(
            "figure, slope",
            "the same curves, of the Nth token alone",
            lambda n: slope("MiniMax-M1", n),
            lambda n: slope("DeepSeek-R1", n),
        ),
        Convention(
            "figure's rule",
            "2 a weight with the head; d_qk + 2 d_v a head and N², all 10 layers; total",
            rebuilt(weights, layers * m1.num_heads, m1.head_dim, m1.head_dim),
            rebuilt(2 * R1.active, R1.layers * R1.heads, R1.d_qk, R1.d_v),
        ),
        Convention(
            "causal",
            "2 a weight with the head, the recurrence, each query with the keys before it; total",
            causal,
            lambda n: 2 * R1.active * n + R1.pairs_flops() * n * (n + 1) / 2,
        ),
        Convention(
            "full square",
            "2 a weight without the head (45.9B, 37B), N² pairs; total",
            lambda n: 2 * 45.9e9 * n + pair * n**2,
            lambda n: 2 * 37e9 * n + R1.pairs_flops() * n**2,
        ),
        Convention(
            "marginal",
            "as causal, but of the Nth token alone",
            position,
            lambda n: 2 * R1.active + R1.pairs_flops() * n,
        ),
        Convention(
            "absorbed",
            "as causal, R1 with absorbed latent attention (576 and 512 a head); total",
            causal,
            lambda n: 2 * R1.active * n + R1.pairs_flops(absorbed=True) * n * (n + 1) / 2,
        ),
    ]
