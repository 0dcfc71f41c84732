"""One optimizer step: loss and gradients over micro-batches, then AdamW; parameters are donated.

With LoRA these are the adapters; the base goes in as `frozen` and comes out of no update.

The gradient of a batch cut into micro-batches is the batch's own, because token weights are
computed for the whole batch before it is cut.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmrl.compilation import model_jit
from mmrl.models import Decoder
from mmrl.rl.loss import ObjectiveConfig, batch_weights, policy_loss
from mmrl.rl.metrics import combine_metrics, probability_correlation, token_mean
from mmrl.rollout import Rollout, score

Metrics = dict[str, jax.Array]
LossFunction = Callable[[Decoder, Any], tuple[jax.Array, Metrics]]
STATIC = ("graphdef", "optimizer", "micro_batches")
NOTHING: nnx.State = nnx.State({})


def accumulate_gradients(
    loss: LossFunction,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    frozen: nnx.State,
    batch: Any,
    micro_batches: int,
) -> tuple[nnx.State, Metrics]:
    """Gradients and metrics of `loss(model, batch)`, summed over equal slices of the batch.

    The gradients are those of `params`; `frozen` are the model's other parameters. Every array of
    `batch` has the batch as its leading axis, a multiple of `micro_batches`. The loss of a slice is
    its share of the batch's loss.
    """

    def gradients(slice_):
        def of_params(params):
            return loss(nnx.merge(graphdef, params, frozen), slice_)

        return jax.grad(of_params, has_aux=True)(params)

    if micro_batches == 1:
        return gradients(batch)
    slices = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)

    def step(total, slice_):
        grads, metrics = gradients(slice_)
        return jax.tree.map(jnp.add, total, grads), metrics

    grads, metrics = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), slices)
    return grads, combine_metrics(metrics)


def apply_gradients(optimizer: optax.GradientTransformation, params, opt_state, grads, metrics):
    """One optimizer step; adds `grad/norm`, the global norm before clipping."""
    metrics["grad/norm"] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics


def router_loss(model: Decoder, statistics: dict, micro_batches: int) -> tuple[jax.Array, Metrics]:
    """A micro-batch's share of the load-balance loss, and its metrics; 0 for a dense model."""
    if not model.config.num_experts:
        return jnp.zeros(()), {}
    loss = model.config.load_balance_coefficient * statistics["load_balance"] / micro_batches
    names = ("load_balance", "max_load")
    return loss, {f"moe/{name}": jax.lax.stop_gradient(statistics[name]) for name in names}


@functools.partial(model_jit, static_argnames=("graphdef", "temperature", "micro_batches"))
def score_logprobs(
    params: nnx.State,
    rollout: Rollout,
    *,
    frozen: nnx.State = NOTHING,
    graphdef: nnx.GraphDef,
    temperature: float,
    micro_batches: int,
) -> jax.Array:
    """Log-probabilities [P, G, T] of a rollout's tokens: a KL's reference, or TIS's old policy."""
    model = nnx.merge(graphdef, params, frozen)
    slices = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), rollout)
    logprobs = jax.lax.map(lambda slice_: score(model, slice_, temperature)["logprobs"], slices)
    return logprobs.reshape(rollout.mask.shape)


@functools.partial(
    model_jit,
    static_argnames=(*STATIC, "objective", "temperature", "packed"),
    donate_argnames=("params", "opt_state"),
)
def policy_update(
    params: nnx.State,
    opt_state: optax.OptState,
    rollout: Rollout,
    scores: dict[str, jax.Array],
    *,
    frozen: nnx.State = NOTHING,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: ObjectiveConfig,
    temperature: float,
    micro_batches: int,
    packed: int | None = None,
) -> tuple[nnx.State, optax.OptState, Metrics]:
    """One step of the objective on a rollout, or on a part of one; P a multiple of `micro_batches`.

    `packed` is the `mmrl.rollout.sampler.packed_size` of its micro-batches, or None.
    The sampler's log-probabilities are pi_old: no scoring pass. `scores` holds what the objective
    needs beyond them, [P, G, T]: `reference_logprobs` for a KL term, `old_logprobs` for TIS.
    `logprob/abs_diff_*` and `logprob/correlation`, that of the probabilities, compare the sampler
    with the trainer at the parameters that enter, so on a rollout's first update they measure how
    far the two disagree about the same weights.
    """
    weights = batch_weights(objective, rollout.mask)

    def loss(model: Decoder, slice_):
        rollout, weights, scores = slice_
        scored = score(model, rollout, temperature, packed)
        value, metrics = policy_loss(
            objective,
            scored["logprobs"],
            rollout.behaviour_logprobs,
            rollout.advantages,
            rollout.mask,
            weights=weights,
            entropy=scored["entropy"],
            **scores,
        )
        difference = jnp.abs(scored["logprobs"] - rollout.behaviour_logprobs)
        fresh = rollout.mask
        if rollout.staleness is not None:  # older tokens are of other weights
            fresh = fresh * (rollout.staleness == 0)
        difference = jax.lax.stop_gradient(jnp.where(fresh > 0, difference, 0))
        metrics["logprob/abs_diff_mean"] = token_mean(difference, fresh)
        metrics["logprob/abs_diff_max"] = difference.max()
        metrics["logprob/correlation"] = probability_correlation(
            jax.lax.stop_gradient(scored["logprobs"]), rollout.behaviour_logprobs, fresh
        )
        balance, router_metrics = router_loss(model, scored, micro_batches)
        return value + balance, metrics | router_metrics

    batch = (rollout, weights, scores)
    grads, metrics = accumulate_gradients(loss, graphdef, params, frozen, batch, micro_batches)
    return apply_gradients(optimizer, params, opt_state, grads, metrics)


@functools.partial(model_jit, static_argnames=STATIC, donate_argnames=("params", "opt_state"))
def supervised_update(
    params: nnx.State,
    opt_state: optax.OptState,
    batch: dict[str, jax.Array],
    *,
    frozen: nnx.State = NOTHING,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
) -> tuple[nnx.State, optax.OptState, Metrics]:
    """One step of next-token cross-entropy, the mean over the batch's target tokens.

    `batch`: `tokens`, `segment_ids` [B, T] int32 and `mask` [B, T], 1 where a token is a target.
    """
    tokens = jnp.maximum(batch["mask"][:, 1:].sum(), 1)

    def loss(model: Decoder, batch):
        hidden, _, statistics = model.hidden_states(
            batch["tokens"], segment_ids=batch["segment_ids"]
        )
        logits = model.logits(hidden[:, :-1])
        targets, mask = batch["tokens"][:, 1:], batch["mask"][:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        value = jnp.where(mask > 0, losses, 0).sum() / tokens
        right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
        metrics = {
            "loss/supervised": jax.lax.stop_gradient(token_mean(losses, mask)),
            "accuracy/token": token_mean(right, mask),
            "tokens/loss": mask.sum().astype(jnp.float32),
        }
        balance, router_metrics = router_loss(model, statistics, micro_batches)
        return value + balance, metrics | router_metrics

    grads, metrics = accumulate_gradients(loss, graphdef, params, frozen, batch, micro_batches)
    return apply_gradients(optimizer, params, opt_state, grads, metrics)


def merge_updates(updates: list[Metrics]) -> dict[str, float]:
    """Metrics of the updates on one rollout as one row: means, and of maxima the greatest.

    The comparison of sampler and trainer is the first update's, the only one in which both have
    the same weights.
    """
    merged = {}
    for name in updates[0]:
        values = [float(update[name]) for update in updates]
        if name.startswith("logprob/"):
            merged[name] = values[0]
        else:
            merged[name] = max(values) if name.endswith("max") else sum(values) / len(values)
    return merged
