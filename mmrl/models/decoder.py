"""The decoder: one forward function for training, scoring, prefill and decode."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.attention import LightningAttention, SoftmaxAttention, layer_slopes
from mmrl.models.cache import Cache
from mmrl.models.config import DecoderConfig, Remat
from mmrl.models.context import Context, computed_once, count_positions
from mmrl.models.layers import LayerInit, RMSNorm, rms_norm, rotary_frequencies, rotary_turns
from mmrl.models.lora import add_adapters
from mmrl.models.mlp import GatedMLP, MixtureOfExperts
from mmrl.models.packing import Packing
from mmrl.sharding import constrain, per_device
from pallas_kernels import fused_head, target
from pallas_kernels.fused_head import reference

Layers = list[list[nnx.State]]  # the weights of each layer of each run
LoopWeights = Layers | list[nnx.State]  # or of each run, stacked


class DecoderLayer(nnx.Module):
    """Token mixer and feed-forward, each with norm and residual.

    Pre-norm: h + f(norm(h)). Post-norm (MiniMax-M1): alpha · x + beta · f(x) with x = norm(h).
    """

    def __init__(self, param: LayerInit, kind: str):
        config = param.config
        self.input_norm = RMSNorm(param, config.hidden_size, config.norm_eps)
        self.attention = (LightningAttention if kind == "lightning" else SoftmaxAttention)(param)
        self.post_attention_norm = RMSNorm(param, config.hidden_size, config.norm_eps)
        self.mlp: MixtureOfExperts | GatedMLP = (
            MixtureOfExperts(param)
            if config.num_experts
            else GatedMLP(param, config.intermediate_size)
        )
        self.config, self.kind = config, kind

    def residual(self, h: jax.Array, x: jax.Array, y: jax.Array, part: str) -> jax.Array:
        alpha, beta = (getattr(self.config, f"{part}_{name}") for name in ("alpha", "beta"))
        return alpha * (x if self.config.postnorm else h) + beta * y

    def __call__(self, h, slopes, context: Context, entry, prompt, index):
        """h [B, T, M] -> [B, T, M], the run's cache entry, and the layer's router statistics.

        The layer is number `index` of its run; `entry` and `prompt` hold the whole run, or with
        index None the layer alone.
        """
        x = self.input_norm(h)
        y, entry = self.attention(x, slopes, context, entry, prompt, index)
        h = self.residual(h, x, y, self.kind)
        x = self.post_attention_norm(h)
        y, statistics = self.mlp(x, context.pack(context.segment_ids))
        return self.residual(h, x, y, "mlp"), entry, statistics


class Decoder(nnx.Module):
    """A causal language model; every architecture is a `DecoderConfig` of it.

    Parameters are stacked over the layers of each run (`DecoderConfig.runs`); the forward pass
    scans over the groups, and over each run within a group.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        shape = (config.vocab_size, config.hidden_size)
        axes = ("vocab", "embed")
        self.embedding = nnx.Param(init(rngs.params(), shape, config.param_dtype), axes=axes)
        self.runs = nnx.List(
            DecoderLayer(LayerInit(rngs, config, config.num_groups * length), kind)
            for kind, length in config.runs
        )
        ones = jnp.ones((config.hidden_size,), config.param_dtype)
        self.final_norm = nnx.Param(ones, axes=("norm",))
        if not config.tie_embeddings:
            self.head = nnx.Param(init(rngs.params(), shape, config.param_dtype), axes=axes)
        add_adapters(self.runs, config, rngs)
        self.config = config

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
        layers: LoopWeights | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Reads tokens [B, T] int32; returns logits [B, T, V] in float32 and the cache after them.

        `segment_ids` [B, T]: 0 is padding, which no token sees and no state counts; without a cache
        other values are packed sequences; with one, the row continues what the cache holds.
        `positions` [B, T] default to counting each sequence's tokens on from the cache.
        `layers`: the weights as `loop_weights` gives them, in a loop over tokens, together with the
        cache of `cache_of_loop`. The cache comes back as it was given, stacked or not.
        """
        hidden, cache, _ = self.hidden_states(
            tokens, positions=positions, segment_ids=segment_ids, cache=cache, layers=layers
        )
        return self.logits(hidden), cache

    @staticmethod
    def unstacks(config: DecoderConfig, platform: str | None = None) -> bool:
        """Whether a loop over tokens needs arrays of each layer's own: weights and cache.

        CPUs and GPUs copy what is sliced out of a stack before they multiply. The platform is that
        of `pallas_kernels.target` unless given.
        """
        copied = (platform or target.platform()) in ("cpu", "gpu") or not config.scan_layers
        return config.loop_copies and copied

    @classmethod
    def copies_weights(cls, config: DecoderConfig, platform: str | None = None) -> bool:
        """Whether `loop_weights` makes a copy: to cut the layers apart, or to cast them."""
        cast = config.loop_copies and config.param_dtype != config.dtype
        return cast or cls.unstacks(config, platform)

    @classmethod
    def cache_of_loop(cls, config: DecoderConfig, cache: Cache) -> Cache:
        """The cache as a loop over tokens wants it, beside the weights of `loop_weights`."""
        return cache.unstacked() if cls.unstacks(config) else cache

    def loop_weights(self) -> LoopWeights | None:
        """The layers' weights for a loop over tokens; None where the model's own are as good.

        They are in the compute dtype, which a step would else cast them to, and apart where the
        platform wants them so (`unstacks`). A loop calls this before its first step, and pays for
        one copy instead of one a token. Its cache must be that of `cache_of_loop`.
        """
        if not self.copies_weights(self.config):
            return None
        stacks = [in_compute_dtype(self.config, nnx.state(run)) for run in self.runs]
        return jax.lax.optimization_barrier(
            _split(stacks) if self.unstacks(self.config) else stacks
        )

    def hidden_states(
        self,
        tokens,
        *,
        positions=None,
        segment_ids=None,
        cache: Cache | None = None,
        layers: LoopWeights | None = None,
        packing: Packing | None = None,
    ):
        """As `__call__`, but returns the final hidden states [B, T, M] and the router statistics.

        With a `packing` of the tokens that are not padding, those of its row, [1, N, M]:
        projections and feed-forward layers do not see the padding then.
        The statistics are means over the layers: `load_balance` and `max_load` (see
        `MixtureOfExperts`), an empty dict for dense models.
        """
        config = self.config
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            positions = count_positions(segment_ids, cache)
        targets = None if cache is None else cache.targets(segment_ids)
        cache = None if cache is None else cache.advance(positions, segment_ids)
        given = cache
        if layers is None and not config.scan_layers:
            layers = _split([nnx.state(run) for run in self.runs])
        apart = layers is not None and isinstance(layers[0], list)
        entries: tuple = (None,) * len(self.runs)
        if cache is not None:
            cache = cache.unstacked() if apart else cache.stacked()
            entries = cache.layers
        pack = (lambda x: x) if packing is None else packing.pack
        turns = rotary_turns(pack(positions), rotary_frequencies(config))
        context = Context(positions, segment_ids, turns, cache, targets, packing)
        context = computed_once(context)
        h = self.embedding[...].astype(config.dtype)[pack(tokens)]
        h = constrain(h, "rows", "time", "hidden")
        run_layers = self._loop_over if apart else self._scan_layers
        h, entries, statistics = run_layers(layers, h, entries, context)
        if given is not None:
            cache = dataclasses.replace(given, layers=entries)
            cache = cache.unstacked() if given.is_unstacked else cache.stacked()
        h = rms_norm(h, self.final_norm[...], config.norm_eps)
        return h, cache, statistics

    def _scan_layers(self, stacks: Any, h: jax.Array, entries: tuple, context: Context):
        """All layers in order: h [B, T, M], the runs' cache entries and mean router statistics.

        `stacks` are the weights of each run, or None for the model's own.

        A cache with more slots than the tokens here is carried from layer to layer and written in
        place. One that these tokens fill goes through layer by layer: carried, the backward pass
        would find all of it again for every layer.
        """
        config, cache = self.config, context.cache
        prompts: tuple = (None,) * len(self.runs)
        if cache is not None and cache.prompt is not None:
            prompts = cache.prompt.layers
        groups, lengths = config.num_groups, [length for _, length in config.runs]
        filled = cache is not None and cache.slots <= context.segment_ids.shape[1]
        graphdefs = [nnx.graphdef(run) for run in self.runs]
        states = [nnx.state(run) for run in self.runs] if stacks is None else stacks

        def by_group(x, length):
            return x.reshape(groups, length, *x.shape[1:])

        def stacked(trees):
            return [
                jax.tree.map(lambda x, length=length: by_group(x, length), tree)
                for tree, length in zip(trees, lengths, strict=True)
            ]

        slopes = by_group(layer_slopes(config), len(config.layer_pattern))
        slopes = jnp.split(slopes, list(itertools.accumulate(lengths))[:-1], axis=1)
        indices = [jnp.arange(groups * n).reshape(groups, n) for n in lengths]
        apart: list = [None] * len(lengths)
        if filled:
            apart = stacked(list(zip(entries, prompts, strict=True)))
            entries = (None,) * len(lengths)

        def run_step(run: int):
            def step(carry, xs):
                (h, entry), (weights, slopes, index, own) = carry, xs
                layer = nnx.merge(graphdefs[run], weights)
                if own is None:
                    h, entry, stats = layer(h, slopes, context, entry, prompts[run], index)
                else:
                    h, own, stats = layer(h, slopes, context, *own, None)
                return (constrain(h, "rows", "time", "hidden"), entry), (own, stats)

            return step if config.remat == "none" else jax.checkpoint(step, policy=_policy(config))

        steps = [run_step(run) for run in range(len(lengths))]

        def group_step(carry, xs):
            h, entries = carry
            carried, outputs = [], []
            for step, entry, run_xs in zip(steps, entries, xs, strict=True):
                (h, entry), output = jax.lax.scan(step, (h, entry), run_xs)
                carried.append(entry)
                outputs.append(output)
            return (h, tuple(carried)), tuple(outputs)

        xs = tuple(zip(stacked(states), slopes, indices, apart, strict=True))
        (h, entries), outputs = jax.lax.scan(group_step, (h, entries), xs)
        written, statistics = zip(*outputs, strict=True)
        if filled:
            entries = jax.tree.map(
                lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), written
            )
        return h, entries, self._mean(statistics)

    def _loop_over(self, layers: Any, h: jax.Array, entries: Any, context: Context):
        """As `_scan_layers`, layer after layer over those of `_split` and `unstacked` entries."""
        cache = context.cache
        prompts: Any = None if cache is None or cache.prompt is None else cache.prompt.layers
        graphdefs = [nnx.graphdef(run) for run in self.runs]
        order = [
            (run, group * length + i)
            for group in range(self.config.num_groups)
            for run, (_, length) in enumerate(self.config.runs)
            for i in range(length)
        ]
        new_entries: list[list] = [[] for _ in entries]
        statistics = []
        for (run, index), slopes in zip(order, layer_slopes(self.config), strict=True):

            def step(weights, h, slopes, entry, prompt, run=run):
                layer = nnx.merge(graphdefs[run], weights)
                h, entry, stats = layer(h, slopes, context, entry, prompt, None)
                return constrain(h, "rows", "time", "hidden"), entry, stats

            if self.config.remat != "none":
                step = jax.checkpoint(step, policy=_policy(self.config))
            entry = None if cache is None else entries[run][index]
            prompt = None if prompts is None else prompts[run][index]
            h, entry, stats = step(layers[run][index], h, slopes, entry, prompt)
            new_entries[run].append(entry)
            statistics.append(stats)
        return h, tuple(map(tuple, new_entries)), self._mean(statistics)

    def _mean(self, statistics: Iterable):
        """Router statistics, in parts with any number of layers each, as means over all layers."""
        return jax.tree.map(
            lambda *parts: sum(x.sum() for x in parts) / self.config.num_layers, *statistics
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., M] -> logits [..., V], float32; `head_dtype` whatever the compute dtype.

        The float32 head is MiniMax-M1's fix for training and inference probabilities that drifted
        apart (arXiv 2506.13585, section 3.2).
        """
        weight = self.embedding if self.config.tie_embeddings else self.head
        exact = self.config.head_dtype == "float32"
        rounded = (lambda x: x) if exact else _bfloat16_values
        operands = (rounded(x.astype(jnp.float32)) for x in (hidden, weight[...]))
        return rounded(jnp.einsum("...m,vm->...v", *operands, precision="highest"))

    def token_logprobs(
        self,
        hidden: jax.Array,
        tokens: jax.Array,
        support: jax.Array | None,
        temperature: float | jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Of tokens [B, T] drawn after hidden [B, T, M]: log-probability and entropy, [B, T] each.

        As `logits` and softmax would give them, with no more of the logits in memory than the fused
        head needs. `support` [B, T, K] are the ids that truncated sampling left, or None; a
        temperature of 0 (greedy) scores at 1. A temperature [B, T] is positive. A bfloat16 head is
        not fused: its logits are rounded, which the fused head never does.
        """
        if self.config.head_dtype != "float32":
            return self._of_rounded_logits(hidden, tokens, support, temperature)
        if isinstance(temperature, jax.Array):
            fixed, temperatures = 1.0, temperature
        else:
            fixed, temperatures = temperature or 1.0, None

        def function(names, hidden, tokens, support, temperatures, weight):
            for axis_name in names["embed"]:
                weight = jax.lax.all_gather(weight, axis_name, axis=1, tiled=True)
            logprobs, entropy = fused_head.token_logprobs(
                hidden.reshape(-1, hidden.shape[-1]),
                weight,
                tokens.reshape(-1),
                temperature=fixed if temperatures is None else temperatures.reshape(-1, 1),
                support=None if support is None else support.reshape(-1, support.shape[-1]),
                axis_name=names["vocab"] or None,
            )
            return logprobs.reshape(tokens.shape), entropy.reshape(tokens.shape)

        rows = ("rows", "time")
        weight = self.embedding if self.config.tie_embeddings else self.head
        return per_device(
            function,
            (hidden, tokens, support, temperatures, weight[...]),
            ((*rows, None), rows, (*rows, None), rows, ("vocab", "embed")),
            (rows, rows),
        )

    def _of_rounded_logits(self, hidden, tokens, support, temperature):
        """`token_logprobs` from all logits at once."""
        if isinstance(temperature, jax.Array):
            temperature = temperature.reshape(-1, 1)
        else:
            temperature = temperature or 1.0
        logits = self.logits(hidden).reshape(-1, self.config.vocab_size) / temperature
        support = None if support is None else support.reshape(-1, support.shape[-1])
        found = reference.of_logits(logits, tokens.reshape(-1), support)
        logprobs, entropy = (x.reshape(tokens.shape) for x in found)
        return logprobs, entropy


def _split(stacks: list[nnx.State]) -> Layers:
    """The weights of each layer, by run; their gradients are concatenated into the stacks'."""

    def layers(stack: nnx.State) -> list[nnx.State]:
        leaves, treedef = jax.tree.flatten(stack)
        parts = [jax.lax.split(x, (1,) * len(x)) for x in leaves]
        return [
            jax.tree.unflatten(treedef, [x[0] for x in layer]) for layer in zip(*parts, strict=True)
        ]

    return [layers(stack) for stack in stacks]


def in_compute_dtype(config: DecoderConfig, state: nnx.State) -> nnx.State:
    """Weights of layers as a forward pass casts them; what it computes with in float32 as it is."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        (
            path,
            x if path[-1] in MixtureOfExperts.FLOAT32 else x.replace(x[...].astype(config.dtype)),
        )
        for path, x in flat
    )


def _bfloat16_values(x: jax.Array) -> jax.Array:
    """`x` in float32 with bfloat16's digits. A compiler may leave out casts there and back."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


# What each `remat` keeps of a layer beside its input, by the names that the layers give.
KEPT: dict[Remat, tuple[str, ...]] = {
    "full": (),
    "projections": ("projection",),
    "products": ("projection", "attention", "experts"),
}


def _policy(config: DecoderConfig):
    """What `remat` lets the forward pass of a layer keep."""
    return jax.checkpoint_policies.save_only_these_names(*KEPT[config.remat])


@functools.cache
def parameter_count(config: DecoderConfig) -> tuple[int, int]:
    """(total, active) parameters by `jax.eval_shape`, nothing allocated.

    Active counts a token's own experts only and leaves out the embedding and the head, the
    convention that gives MiniMax-M1's 45.9B.
    """
    shapes = jax.eval_shape(lambda: nnx.state(Decoder(config, nnx.Rngs(0)), nnx.Param))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    vocabulary = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    expert = 3 * config.hidden_size * config.intermediate_size
    idle = config.num_layers * (config.num_experts - config.experts_per_token) * expert
    return total, total - vocabulary - (idle if config.num_experts else 0)
