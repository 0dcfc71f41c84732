"""Feed-forward layers: the gated MLP and the dropless mixture of experts."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmrl.models.experts import routed_experts
from mmrl.models.layers import LayerInit
from mmrl.models.lora import linear
from mmrl.sharding import constrain, per_device

EXPERT_AXES = (("expert", "embed", "mlp"), ("expert", "embed", "mlp"), ("expert", "mlp", "embed"))


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, param: LayerInit, size: int):
        m = param.config.hidden_size
        self.gate = param((m, size), ("embed", "mlp"))
        self.up = param((m, size), ("embed", "mlp"))
        self.down = param((size, m), ("mlp", "embed"))

    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, dict]:
        """x [B, T, M] -> [B, T, M]; a dense layer has no statistics."""
        gate, up = (linear(self, name, "btm,mf->btf", x) for name in ("gate", "up"))
        hidden = constrain(jax.nn.silu(gate) * up, "rows", "time", "mlp")
        return linear(self, "down", "btf,fm->btm", hidden), {}


def top_ids(ranking: jax.Array, k: int) -> jax.Array:
    """The k best of [B, T, E], [B, T, k], on each device for its own tokens: XLA gathers all."""

    def function(names, ranking):
        return jax.lax.top_k(ranking, k)[1]

    tokens = ("rows", "time", None)
    return per_device(function, (ranking,), (tokens,), tokens)


class MixtureOfExperts(nnx.Module):
    """Top-k routed experts, dropless (`mmrl.models.experts`).

    Router "softmax": softmax over all experts in float32, top-k, renormalised to sum 1 (M1).
    Router "sigmoid": top-k of sigmoid(logits) + bias, weighted by the unbiased sigmoid over its sum
    (MiniMax-M2). A shared expert, where there is one, is mixed as
    moe·(1-c) + shared·c with c = sigmoid(coefficient · x) in float32 (modeling_minimax_m1.py).
    """

    FLOAT32 = ("router", "router_bias", "shared_coefficient")  # weights that are not cast

    def __init__(self, param: LayerInit):
        config = param.config
        m, e, f = config.hidden_size, config.num_experts, config.intermediate_size
        # The router stays in float32: the released M1 weights store it so.
        self.router = param((m, e), ("embed", None), dtype="float32")
        self.gate = param((e, m, f), EXPERT_AXES[0])
        self.up = param((e, m, f), EXPERT_AXES[1])
        self.down = param((e, f, m), EXPERT_AXES[2])
        if config.router_bias:
            zeros = nnx.initializers.zeros
            self.router_bias = param((e,), (None,), init=zeros, dtype="float32")
        if config.shared_expert_size:
            self.shared = GatedMLP(param, config.shared_expert_size)
            self.shared_coefficient = param((m, 1), ("embed", None))
        self.config = config

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, M] -> weights, expert ids [B, T, K] and probabilities [B, T, E], in float32."""
        logits = jnp.matmul(x.astype(jnp.float32), self.router[...], precision="highest")
        logits = checkpoint_name(logits, "projection")
        k = self.config.experts_per_token
        if self.config.router == "softmax":
            probs = jax.nn.softmax(logits)
            ranking = probs
        else:
            probs = jax.nn.sigmoid(logits)
            ranking = probs + self.router_bias[...] if self.config.router_bias else probs
        ids = top_ids(jax.lax.stop_gradient(ranking), k)
        # A product with one-hot rows, whose gradient is no scatter.
        chosen = jax.nn.one_hot(ids, self.config.num_experts)
        weights = jnp.einsum("btke,bte->btk", chosen, probs, precision="highest")
        weights = checkpoint_name(weights, "projection")
        if self.config.normalise_top_k and k > 1:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        elif self.config.normalise_top_k:
            # Of a division the gradient would be rounding instead of 0, and Adam would follow it.
            weights = jnp.ones_like(weights)
        return weights, ids, probs

    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, dict]:
        """x [B, T, M] -> [B, T, M], and the router's statistics over tokens that are not padding.

        `load_balance`: E · Σ_e (assignments to e a token) · (mean probability of e), Switch
        Transformer (arXiv 2101.03961) eq. 4 summed over the top-k as Mixtral does; `max_load`: the
        busiest expert's share of assignments times E, 1 when even.
        """
        e, k = self.config.num_experts, self.config.experts_per_token
        valid = segment_ids != 0
        weights, ids, probs = self.route(x)
        # Padding goes to an expert past the last one.
        ids = jnp.where(valid[..., None], ids, e)
        matrices = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        tokens = ("rows", "time", None)
        out = per_device(
            routed_experts,
            (x, weights.astype(x.dtype), ids, *matrices),
            (tokens, tokens, tokens, *EXPERT_AXES),
            tokens,
        )
        if self.config.shared_expert_size:
            coefficient = self.shared_coefficient[...].astype(jnp.float32)
            share = checkpoint_name(x.astype(jnp.float32) @ coefficient, "projection")
            share = jax.nn.sigmoid(share).astype(x.dtype)
            out = checkpoint_name(out, "experts")
            out = out * (1 - share) + self.shared(x, segment_ids)[0] * share
        count = jnp.maximum(valid.sum(), 1)
        load = jnp.sum(ids[..., None] == jnp.arange(e), axis=(0, 1, 2), dtype=jnp.int32) / count
        mean_prob = jnp.where(valid[..., None], probs, 0).sum(axis=(0, 1)) / count
        return out, {
            "load_balance": e * jnp.sum(load * mean_prob),
            "max_load": load.max() * e / k,
        }
