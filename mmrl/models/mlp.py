"""Feed-forward layers: the gated MLP and the dropless mixture of experts."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.layers import LayerInit
from mmrl.sharding import constrain
from pallas_kernels.grouped_matmul import grouped_matmul


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, param: LayerInit, size: int):
        m = param.config.hidden_size
        self.gate = param((m, size), ("embed", "mlp"))
        self.up = param((m, size), ("embed", "mlp"))
        self.down = param((size, m), ("mlp", "embed"))

    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, dict]:
        """x [B, T, M] -> [B, T, M]; a dense layer has no statistics."""
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        hidden = constrain(jax.nn.silu(x @ gate) * (x @ up), "batch", None, "mlp")
        return hidden @ down, {}


class MixtureOfExperts(nnx.Module):
    """Top-k routed experts, dropless: tokens are sorted by expert and multiplied group by group.

    Router "softmax": softmax over all experts in float32, top-k, renormalised to sum 1 (M1).
    Router "sigmoid": top-k of sigmoid(logits) + bias, weighted by the unbiased sigmoid over its sum
    (MiniMax-M2). A shared expert, where there is one, is mixed as
    moe·(1-c) + shared·c with c = sigmoid(coefficient · x) in float32 (modeling_minimax_m1.py).
    """

    def __init__(self, param: LayerInit):
        config = param.config
        m, e, f = config.hidden_size, config.num_experts, config.intermediate_size
        # The router stays in float32: the released M1 weights store it so.
        self.router = param((m, e), ("embed", None), dtype="float32")
        self.gate = param((e, m, f), ("expert", "embed", "mlp"))
        self.up = param((e, m, f), ("expert", "embed", "mlp"))
        self.down = param((e, f, m), ("expert", "mlp", "embed"))
        if config.router_bias:
            zeros = nnx.initializers.zeros
            self.router_bias = param((e,), (None,), init=zeros, dtype="float32")
        if config.shared_expert_size:
            self.shared = GatedMLP(param, config.shared_expert_size)
            self.shared_coefficient = param((m, 1), ("embed", None))
        self.config = config

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [N, M] -> weights [N, K], expert ids [N, K], router probabilities [N, E] (float32)."""
        logits = jnp.matmul(x.astype(jnp.float32), self.router[...], precision="highest")
        k = self.config.experts_per_token
        if self.config.router == "softmax":
            probs = jax.nn.softmax(logits)
            weights, ids = jax.lax.top_k(probs, k)
        else:
            probs = jax.nn.sigmoid(logits)
            biased = probs + self.router_bias[...] if self.config.router_bias else probs
            ids = jax.lax.top_k(jax.lax.stop_gradient(biased), k)[1]
            weights = jnp.take_along_axis(probs, ids, axis=-1)
        return weights / weights.sum(axis=-1, keepdims=True), ids, probs

    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, dict]:
        """x [B, T, M] -> [B, T, M], and the router's statistics over tokens that are not padding.

        `load_balance`: E · Σ_e (assignments to e a token) · (mean probability of e), Switch
        Transformer (arXiv 2101.03961) eq. 4 summed over the top-k as Mixtral does; `max_load`: the
        busiest expert's share of assignments times E, 1 when even.
        """
        e, k = self.config.num_experts, self.config.experts_per_token
        flat = x.reshape(-1, x.shape[-1])
        valid = segment_ids.reshape(-1) != 0
        weights, ids, probs = self.route(flat)
        # Padding goes to an expert past the last one, whose rows no group covers.
        ids = jnp.where(valid[:, None], ids, e).reshape(-1)
        order = jnp.argsort(ids)
        sizes = jnp.bincount(ids, length=e)
        rows = flat[order // k]
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        hidden = jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)
        rows = grouped_matmul(hidden, down, sizes)
        chosen = rows[jnp.argsort(order)].reshape(-1, k, x.shape[-1])
        out = jnp.einsum("nkm,nk->nm", chosen, weights.astype(x.dtype)).reshape(x.shape)
        if self.config.shared_expert_size:
            coefficient = self.shared_coefficient[...].astype(jnp.float32)
            share = jax.nn.sigmoid(x.astype(jnp.float32) @ coefficient).astype(x.dtype)
            out = out * (1 - share) + self.shared(x, segment_ids)[0] * share
        count = jnp.maximum(valid.sum(), 1)
        load = sizes / count
        mean_prob = jnp.where(valid[:, None], probs, 0).sum(axis=0) / count
        return out, {
            "load_balance": e * jnp.sum(load * mean_prob),
            "max_load": load.max() * e / k,
        }
