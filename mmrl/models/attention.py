"""The two token mixers: lightning (linear) attention and grouped-query softmax attention."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmrl.models.cache import KeyValues, LightningState, read_layer, write_slots
from mmrl.models.config import DecoderConfig
from mmrl.models.context import Context
from mmrl.models.layers import LayerInit, RMSNorm, rotate
from mmrl.models.lora import linear
from mmrl.sharding import constrain, per_device
from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.lightning_attention.sequence_parallel import (
    sequence_parallel_lightning_attention,
)
from pallas_kernels.softmax_attention import merge_attention, softmax_attention

# The lightning norm uses its class default and not the config's eps (modeling_minimax_m1.py).
LIGHTNING_NORM_EPS = 1e-6
WEIGHED = ("rows", "time", "heads", None)  # where weights meet the activations of their heads
HEADS = ("batch", "time", "activation_heads", None)  # where the tokens of a row meet
KEYS = ("batch", "time", "activation_kv_heads", None)
STATE = ("batch", "activation_heads", None, None)


def layer_slopes(config: DecoderConfig) -> jax.Array:
    """Decay rates s_h · f_l of every layer, [num_layers, H] in float32, l counted over all layers.

    `lightning_slopes` "m1" (modeling_minimax_m1.py): s_h = 2^(-8h/H), h = 1..H, and
    f_l = 1 - l/(L-1) + 1e-5 (L = 1 as vLLM does). Where H is no power of two, the ALiBi rule: the
    slopes of the power below, then every other slope of twice that power.
    "transformers" (its `minimax`): 2^(-8h/H) for every H, and f_l = 1 - l/(L-1+1e-5) + 1e-5, which
    for few layers differs: with L = 2 the last layer decays twice as fast.
    """
    heads, depth = config.num_heads, config.num_layers
    if config.lightning_slopes == "transformers":
        slopes = [2.0 ** (-8.0 * h / heads) for h in range(1, heads + 1)]
        last = depth - 1 + 1e-5
    else:
        power = 1 << (heads.bit_length() - 1)
        slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
        doubled = [2.0 ** (-4.0 * h / power) for h in range(1, 2 * power + 1)]
        slopes += doubled[0::2][: heads - power]
        last = max(depth - 1, 1)
    factors = 1.0 - np.arange(depth) / last + 1e-5
    return jnp.asarray(factors[:, None] * np.asarray(slopes), jnp.float32)


class LightningAttention(nnx.Module):
    """o_t = q_t Σ_{s≤t} λ^(t-s) k_sᵀ v_s, q, k, v = silu(W x); norm over all heads; sigmoid gate.

    MiniMax-01 (arXiv 2501.08313) and modeling_minimax_m1.py: no rotary, no scale, no denominator.
    """

    def __init__(self, param: LayerInit):
        config = param.config
        m, h, d = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = param((m, h, 3 * d), ("embed", "heads", "head_dim"))
        self.gate = param((m, h, d), ("embed", "heads", "head_dim"))
        self.norm = RMSNorm(param, h * d, LIGHTNING_NORM_EPS)
        self.out = param((h, d, m), ("heads", "head_dim", "embed"))

    def __call__(
        self,
        x: jax.Array,
        slopes: jax.Array,
        context: Context,
        entry: LightningState | None,
        prompt: LightningState | None,
        index: jax.Array | None,
    ) -> tuple[jax.Array, LightningState | None]:
        """x [B, T, M] -> [B, T, M], and the run's cache entry with layer `index` replaced.

        `prompt` is not used: a fork repeats the shared prompt's state into `entry`.
        """
        qkv = jax.nn.silu(linear(self, "qkv", "btm,mhe->bthe", x))
        qkv = context.unpack(constrain(qkv, *WEIGHED))
        q, k, v = jnp.split(constrain(qkv, *HEADS), 3, axis=-1)
        state = None if entry is None else read_layer(entry, index).kv
        out, state = per_device(
            _lightning_attention,
            (q, k, v, slopes, state, context.segment_ids),
            (HEADS, HEADS, HEADS, ("activation_heads",), STATE, ("batch", "time")),
            (HEADS, STATE),
        )
        if entry is not None:
            if index is not None:
                state = jax.lax.dynamic_update_index_in_dim(entry.kv, state, index, 0)
            entry = LightningState(state)
        out = constrain(context.pack(checkpoint_name(out, "attention")), *WEIGHED)
        out = self.norm(out.reshape(*x.shape[:2], -1)).reshape(out.shape)
        gate = jax.nn.sigmoid(linear(self, "gate", "btm,mhd->bthd", x))
        return linear(self, "out", "bthd,hdm->btm", out * gate), entry


def _lightning_attention(names, q, k, v, slopes, state, segment_ids):
    """On one device: the rows' tokens lie in order on the devices of the time's mesh axis."""
    arguments = dict(initial_state=state, segment_ids=segment_ids)
    if not names["time"]:
        return lightning_attention(q, k, v, slopes, **arguments)
    (axis_name,) = names["time"]
    return sequence_parallel_lightning_attention(q, k, v, slopes, axis_name=axis_name, **arguments)


class SoftmaxAttention(nnx.Module):
    """Grouped-query attention with rotary embedding on the first `rotary_dim` dimensions of a head.

    `qk_norm` "width" norms q and k over all heads at once (MiniMax-M2), "head" each head (Qwen3).
    """

    def __init__(self, param: LayerInit):
        config = param.config
        m, d = config.hidden_size, config.head_dim
        h, kv = config.num_heads, config.num_kv_heads
        self.q = param((m, h, d), ("embed", "heads", "head_dim"))
        self.k = param((m, kv, d), ("embed", "kv_heads", "head_dim"))
        self.v = param((m, kv, d), ("embed", "kv_heads", "head_dim"))
        self.out = param((h, d, m), ("heads", "head_dim", "embed"))
        if config.attention_bias:
            zeros = nnx.initializers.zeros
            self.q_bias = param((h, d), ("heads", "head_dim"), init=zeros)
            self.k_bias = param((kv, d), ("kv_heads", "head_dim"), init=zeros)
            self.v_bias = param((kv, d), ("kv_heads", "head_dim"), init=zeros)
        if config.attention_out_bias:
            self.out_bias = param((m,), ("embed",), init=nnx.initializers.zeros)
        if config.qk_norm != "none":
            q_size, k_size = (h * d, kv * d) if config.qk_norm == "width" else (d, d)
            self.q_norm = RMSNorm(param, q_size, config.norm_eps)
            self.k_norm = RMSNorm(param, k_size, config.norm_eps)
        self.config = config

    def project(self, x: jax.Array, name: str) -> jax.Array:
        """The heads of q, k or v, [B, T, heads, D], with the config's bias and norm."""
        y = constrain(linear(self, name, "btm,mhd->bthd", x), *WEIGHED)
        if self.config.attention_bias:
            y = y + getattr(self, f"{name}_bias")[...].astype(x.dtype)
        if self.config.qk_norm == "width" and name != "v":
            y = getattr(self, f"{name}_norm")(y.reshape(*x.shape[:2], -1)).reshape(y.shape)
        elif self.config.qk_norm == "head" and name != "v":
            y = getattr(self, f"{name}_norm")(y)
        return y

    def __call__(
        self,
        x: jax.Array,
        slopes: jax.Array,
        context: Context,
        entry: KeyValues | None,
        prompt: KeyValues | None,
        index: jax.Array | None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """x [B, T, M] -> [B, T, M], and the run's cache entry with the new keys and values written.

        `entry` and `prompt`, the shared prompt's cache, hold all layers of the run. `slopes` are
        not used.
        """
        q, k = (rotate(self.project(x, name), context.turns) for name in ("q", "k"))
        q = constrain(context.unpack(q), *HEADS)
        k = constrain(context.unpack(k), *KEYS).swapaxes(1, 2)
        v = constrain(context.unpack(self.project(x, "v")), *KEYS).swapaxes(1, 2)
        cache = context.cache
        positions = jnp.where(context.segment_ids != 0, context.positions, -1)
        if cache is not None and entry is not None and cache.slots:
            entry = write_slots(entry, k, v, index, context.targets)
            parts = [attend(q, entry, cache.positions, positions, index)]
        else:
            # With a cache a row is one sequence, so positions alone decide who sees whom.
            segments = context.segment_ids if cache is None else None
            parts = [attend_to_self(q, k, v, positions, segments)]
        if prompt is not None and cache is not None and cache.prompt is not None:
            parts.append(attend(q, prompt, cache.prompt.positions, positions, index))
        out = merge_attention(parts) if len(parts) > 1 else parts[0][0]
        out = constrain(context.pack(out), *WEIGHED)
        y = linear(self, "out", "bthd,hdm->btm", out)
        if self.config.attention_out_bias:
            y = y + self.out_bias[...].astype(x.dtype)
        return y, entry


def attend_to_self(q, k, v, positions, segments) -> tuple[jax.Array, jax.Array]:
    """Attention of tokens to one another, q [B, T, H, D] and k, v [B, kv_heads, T, D]: out, lse.

    `positions` [B, T] are -1 for padding; `segments` [B, T] or None. Where the time is sharded each
    device gathers the keys and values of all.
    """

    def function(names, q, k, v, positions, segments):
        k, v = own_heads(names, q, k), own_heads(names, q, v)
        kv_positions, kv_segments = positions, segments
        for name in names["time"]:
            k, v = (jax.lax.all_gather(x, name, axis=2, tiled=True) for x in (k, v))
            kv_positions = jax.lax.all_gather(positions, name, axis=1, tiled=True)
            if segments is not None:
                kv_segments = jax.lax.all_gather(segments, name, axis=1, tiled=True)
        return softmax_attention(
            q,
            k,
            v,
            q_positions=positions,
            kv_positions=kv_positions,
            q_segment_ids=segments,
            kv_segment_ids=kv_segments,
        )

    keys, tokens = ("batch", "activation_kv_heads", "time", None), ("batch", "time")
    return per_device(
        function,
        (q, k, v, positions, segments),
        (HEADS, keys, keys, tokens, tokens),
        (HEADS, HEADS[:3]),
    )


def attend(q, entry: KeyValues, kv_positions, positions, index) -> tuple[jax.Array, jax.Array]:
    """Attention of q [B, T, H, D] to layer `index` of a cache's run: out, lse.

    The cache has B rows, or those of prompts that B / P rows each continue. The index is None for
    the entry of one layer.
    """

    def function(names, q, k, v, kv_positions, positions, index):
        axis = 0 if index is None else 1
        k, v = (own_prompts(names, q, own_heads(names, q, x), axis) for x in (k, v))
        kv_positions = own_prompts(names, q, kv_positions, axis=0)
        return softmax_attention(
            q, k, v, layer=index, q_positions=positions, kv_positions=kv_positions
        )

    keys: tuple = ("prompts", "activation_kv_heads", None, None)
    if index is not None:
        keys, index = (None, *keys), jnp.asarray(index)
    return per_device(
        function,
        (q, entry.k, entry.v, kv_positions, positions, index),
        (HEADS, keys, keys, ("prompts", None), ("batch", "time"), ()),
        (HEADS, HEADS[:3]),
    )


def own_heads(names, q: jax.Array, kv: jax.Array) -> jax.Array:
    """The heads of keys or values [..., kv_heads, S, D] that a device's query heads read.

    They are all there where the mesh axis divides the query heads but not the fewer of the keys.
    """
    if not names["activation_heads"] or names["activation_kv_heads"]:
        return kv
    (axis_name,) = names["activation_heads"]
    heads, devices = q.shape[2], jax.lax.axis_size(axis_name)
    group = heads * devices // kv.shape[-3]
    return _own_groups(kv, kv.ndim - 3, jax.lax.axis_index(axis_name) * heads, heads, group)


def own_prompts(names, q: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """The prompts along an axis of x that a device's rows of q [B, T, H, D] continue.

    Fewer mesh axes may divide the prompts than the rows: then several devices hold the same ones.
    """
    rest = names["batch"][len(names["prompts"]) :]
    if not rest:
        return x
    rows, devices = q.shape[0], jax.lax.axis_size(rest)
    group = rows * devices // x.shape[axis]
    return _own_groups(x, axis, jax.lax.axis_index(rest) * rows, rows, group)


def _own_groups(x: jax.Array, axis: int, first: jax.Array, count: int, group: int) -> jax.Array:
    """What members first … first + count - 1 share, `group` of them each entry of an axis."""
    if count % group and group % count:
        return jnp.take(x, (first + jnp.arange(count)) // group, axis=axis)
    return jax.lax.dynamic_slice_in_dim(x, first // group, max(count // group, 1), axis)
