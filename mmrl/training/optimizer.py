"""AdamW as MiniMax-M1 used it, guarded: clipped by global norm, non-finite gradients skipped.

The paper's gradients span 1e-18..1e-5, most below 1e-14, so Adam's usual eps of 1e-8 would drown
them; it uses b2 = 0.95 and eps = 1e-15 (arXiv 2506.13585 section 4.2). In float32 squares below
1e-38 flush to zero, but a gradient whose share of the second moment is lost that way is under
5e-19, where eps outweighs its root 2,000 times: the update is right to 0.05%. Parameters, hence
moments, must be float32; bfloat16 moments would not follow b2.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "linear", "cosine")
_NEVER = 2**31 - 1  # optax's skip counter saturates here, so non-finite gradients never apply.


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Options of `make_optimizer`.

    Attributes:
        learning_rate: peak; the paper gives none for RL, 1e-6 is slime's.
        schedule: "constant", "linear" or "cosine", the decay that follows the warm-up.
        warmup_steps: updates until the peak, rising linearly from learning_rate / warmup_steps.
        decay_steps: update, warm-up included, at which the decay ends; unused by "constant".
        final_fraction: share of learning_rate left at the end of the decay.
        b1, b2, eps: Adam's.
        weight_decay: decoupled, times the learning rate; see `decayed`.
        decay_embeddings: whether embeddings decay too.
        clip_norm: greatest global gradient norm; None does not clip.
        max_consecutive_skips: non-finite gradients in a row at which `check_skips` raises.
        offload: keep the moments in the host's memory between updates, where the platform can.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-15
    weight_decay: float = 0.0
    decay_embeddings: bool = False
    clip_norm: float | None = 1.0
    max_consecutive_skips: int = 5
    offload: bool = False

    def __post_init__(self) -> None:
        decays = self.schedule != "constant"
        after_warmup = self.decay_steps is not None and self.decay_steps > self.warmup_steps
        for field, holds, requirement in (
            ("learning_rate", self.learning_rate >= 0, ">= 0"),
            ("schedule", self.schedule in SCHEDULES, f"one of {SCHEDULES}"),
            ("warmup_steps", self.warmup_steps >= 0, ">= 0"),
            ("decay_steps", after_warmup or not decays, "> warmup_steps, which it includes"),
            ("final_fraction", 0 <= self.final_fraction <= 1, "in [0, 1]"),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)"),
            ("eps", self.eps > 0, "> 0"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "> 0, or None"),
            ("max_consecutive_skips", self.max_consecutive_skips > 0, "> 0"),
        ):
            if not holds:
                raise ValueError(f"{field} must be {requirement}, not {getattr(self, field)!r}")


@functools.cache  # one object for one config: programs that take it are traced once
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with `make_schedule`, skipping non-finite gradients.

    A gradient with a NaN or infinity changes neither parameters nor moments nor the schedule; it
    only counts, see `skips` and `check_skips`. Moments have the tree, shapes and shardings of the
    parameters. A finite gradient whose norm overflows float32 is clipped to zero.
    """
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    adamw = optax.adamw(
        make_schedule(config),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: decayed(params, embeddings=config.decay_embeddings),
    )
    guarded = optax.apply_if_finite(optax.chain(clip, adamw), max_consecutive_errors=_NEVER)
    return offloaded(guarded) if config.offload else guarded


def offloaded(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with the arrays of its state in the host's memory; its counters stay on the device.

    An update fetches them when the gradients are there and the activations gone, and puts them
    back. For compiled functions only: eager operations on arrays of the host's memory fail.
    """

    def place(state, space):
        return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)

    def init(params):
        return place(inner.init(params), jax.memory.Space.Host)

    def update(grads, state, params=None):
        state = place(state, jax.memory.Space.Device)
        updates, state = inner.update(grads, state, params)
        return updates, place(state, jax.memory.Space.Host)

    return optax.GradientTransformation(init, update)


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of the update that follows `count` applied ones.

    learning_rate * min(1, (count + 1) / warmup_steps) * (f + (1 - f) * decay(p)), with
    p = (count - warmup_steps) / (decay_steps - warmup_steps) clipped to [0, 1], f = final_fraction
    and decay 1, 1 - p or (1 + cos(pi p)) / 2. No update is spent at rate 0.
    """

    def schedule(count):
        warmup = jnp.minimum((count + 1) / max(config.warmup_steps, 1), 1.0)
        if config.schedule == "constant":
            return config.learning_rate * warmup
        decay_updates = config.decay_steps - config.warmup_steps
        progress = jnp.clip((count - config.warmup_steps) / decay_updates, 0.0, 1.0)
        linear = config.schedule == "linear"
        decay = 1 - progress if linear else (1 + jnp.cos(math.pi * progress)) / 2
        floor = config.final_fraction
        return config.learning_rate * warmup * (floor + (1 - floor) * decay)

    return schedule


def decayed(params: Any, *, embeddings: bool = False) -> Any:
    """Whether weight decay applies, a boolean for each leaf of `params`.

    By name, for a layer stack gives vectors a second axis: no leaf under a key that contains
    "norm" or "bias", nor "embed" unless `embeddings`. Leaves of one axis never decay.
    """
    exempt = ("norm", "bias") if embeddings else ("norm", "bias", "embed")

    def decays(path, leaf):
        name = jax.tree_util.keystr(path).lower()
        return jnp.ndim(leaf) > 1 and not any(word in name for word in exempt)

    return jax.tree_util.tree_map_with_path(decays, params)


@functools.partial(jax.jit, static_argnames="config")
def learning_rate(config: OptimizerConfig, opt_state: optax.OptState) -> jax.Array:
    """Learning rate of the latest update, or of the next one if the latest was skipped."""
    count = optax.tree.get(opt_state, "ScaleByScheduleState").count
    return make_schedule(config)(jnp.maximum(count - opt_state.last_finite, 0))


def skips(opt_state: optax.OptState) -> tuple[jax.Array, jax.Array]:
    """Updates skipped for non-finite gradients: (in a row up to now, in total)."""
    return opt_state.notfinite_count, opt_state.total_notfinite


def check_skips(config: OptimizerConfig, opt_state: optax.OptState) -> None:
    """Call on the host after an update.

    Raises:
        FloatingPointError: the last `max_consecutive_skips` gradients were all non-finite.
    """
    consecutive, total = (int(count) for count in skips(opt_state))
    if consecutive >= config.max_consecutive_skips:
        raise FloatingPointError(
            f"{consecutive} gradients in a row were not finite ({total} in total). Parameters are "
            f"as before them. Lower learning_rate, clip_norm or eps_high, or find the operation "
            f"with JAX_DEBUG_NANS=True; max_consecutive_skips ({config.max_consecutive_skips}) "
            f"sets the patience."
        )
