"""Feed-forward layers: the gated MLP and the dropless mixture of experts."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.layers import LayerInit
from mmrl.models.lora import linear
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
        gate, up = (linear(self, name, "btm,mf->btf", x) for name in ("gate", "up"))
        hidden = constrain(jax.nn.silu(gate) * up, "batch", None, "mlp")
        return linear(self, "down", "btf,fm->btm", hidden), {}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def permute_rows(x: jax.Array, order: jax.Array, inverse: jax.Array, copies: int) -> jax.Array:
    """Rows of x [N, M], each `copies` times, in the order [N · copies], a permutation.

    `inverse` undoes `order`, so that the gradient is a gather as well: the scatter that
    differentiating an index would give runs row by row on a CPU and in no fixed order on a GPU.
    """
    return x[order // copies]


def _permute_rows_forward(x, order, inverse, copies):
    return permute_rows(x, order, inverse, copies), inverse


def _permute_rows_backward(copies, inverse, out_bar):
    return out_bar[inverse].reshape(-1, copies, out_bar.shape[-1]).sum(axis=1), None, None


permute_rows.defvjp(_permute_rows_forward, _permute_rows_backward)


FEW_TOKENS = 256  # where sorting costs more than the products it saves


class MixtureOfExperts(nnx.Module):
    """Top-k routed experts, dropless: tokens are sorted by expert and multiplied group by group.

    A few tokens, as in decoding, go through every expert instead where at least half of them are
    chosen anyway: that reads all weights once, in place.

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
            ranking = probs
        else:
            probs = jax.nn.sigmoid(logits)
            ranking = probs + self.router_bias[...] if self.config.router_bias else probs
        ids = jax.lax.top_k(jax.lax.stop_gradient(ranking), k)[1]
        # A product with one-hot rows, whose gradient is no scatter.
        chosen = jax.nn.one_hot(ids, self.config.num_experts)
        weights = jnp.einsum("nke,ne->nk", chosen, probs, precision="highest")
        if self.config.normalise_top_k:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return weights, ids, probs

    def chosen_experts(self, x, weights, ids, sizes) -> jax.Array:
        """Σ_k weights[n, k] · expert ids[n, k] of x[n], x [N, M] -> [N, M]; 0 where ids is E.

        `sizes` [E] are the assignments to each expert.
        """
        k = self.config.experts_per_token
        order = jnp.argsort(ids.reshape(-1))
        inverse = jnp.argsort(order)
        rows = permute_rows(x, order, inverse, k)
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        hidden = jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)
        rows = grouped_matmul(hidden, down, sizes)
        chosen = permute_rows(rows, inverse, order, 1).reshape(-1, k, x.shape[-1])
        return jnp.einsum("nkm,nk->nm", chosen, weights)

    def all_experts(self, x, weights, ids, sizes) -> jax.Array:
        """As `chosen_experts`, by every expert with weight 0 where it was not chosen."""
        chosen = jax.nn.one_hot(ids, self.config.num_experts, dtype=x.dtype)
        weights = jnp.einsum("nke,nk->ne", chosen, weights)
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        rows = jnp.broadcast_to(x, (self.config.num_experts, *x.shape))
        hidden = jax.nn.silu(jnp.einsum("enm,emf->enf", rows, gate))
        hidden *= jnp.einsum("enm,emf->enf", rows, up)
        # Rounded to x.dtype before the sum, as rows of `chosen_experts` are.
        return jnp.einsum("enm,ne->nm", jnp.einsum("enf,efm->enm", hidden, down), weights)

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
        few = flat.shape[0] <= FEW_TOKENS and e <= 2 * k
        experts = self.all_experts if few else self.chosen_experts
        # Padding goes to an expert past the last one.
        ids = jnp.where(valid[:, None], ids, e)
        sizes = jnp.sum(ids[..., None] == jnp.arange(e), axis=(0, 1), dtype=jnp.int32)
        out = experts(flat, weights.astype(x.dtype), ids, sizes).reshape(x.shape)
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
