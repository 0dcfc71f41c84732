"""What the runs of the comparison are: methods, the grid each is tuned on, and their configs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmrl.rl.loss import ObjectiveConfig
from mmrl.training.config import TrainConfig

# Edges of the bins of the behaviour probability by which clipping is reported.
PROBABILITY_BINS = (0.01, 0.05, 0.2, 0.5, 0.9)
# Clips, as (eps_low, eps_high). Of DAPO and GRPO the papers' and half and twice those. M1 gives no
# number for CISPO: 4, so ratios up to 5, is usual, and 0.28 is DAPO's upper bound.
CLIPS: dict[str, tuple[tuple[float | None, float], ...]] = {
    "cispo": ((None, 4.0), (None, 1.0), (None, 0.28)),
    "dapo": ((0.2, 0.28), (0.1, 0.14), (0.4, 0.56)),
    "grpo": ((0.2, 0.2), (0.1, 0.1), (0.4, 0.4)),
}
# The best of them at a learning rate of 1e-4, by the tuning that docs/studies.md reports.
TUNED_CLIPS: dict[str, tuple[tuple[float | None, float], ...]] = {
    "cispo": ((None, 0.28),),
    "dapo": ((0.2, 0.28),),
    "grpo": ((0.4, 0.4),),
}
# Held-out problems of the comparison and, others, of the tuning: seeds of their generators.
HELD_OUT, TUNING_HELD_OUT = 1_000, 1_001


@dataclass(frozen=True)
class Setting:
    """A method with its clip, deltas from ratio 1, and learning rate."""

    method: str
    eps_low: float | None
    eps_high: float
    learning_rate: float

    @property
    def name(self) -> str:
        low = "" if self.eps_low is None else f"{self.eps_low:g}-"
        return f"{self.method}-eps{low}{self.eps_high:g}-lr{self.learning_rate:g}"


@dataclass(frozen=True)
class Plan:
    """How large the comparison is: runs of `steps` × `prompts_per_step` × the config's group.

    Every method has as many clips, each tried with every learning rate and tuning seed for
    `tuning_steps`.
    """

    steps: int = 100
    tuning_steps: int = 60
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    evaluation_interval: int = 5
    updates_per_rollout: int = 16
    prompts_per_step: int = 32
    held_out_prompts: int = 512
    clips: Mapping[str, tuple[tuple[float | None, float], ...]] = field(
        default_factory=lambda: CLIPS
    )

    def grid(self, method: str) -> list[Setting]:
        return [
            Setting(method, low, high, rate)
            for low, high in self.clips[method]
            for rate in self.learning_rates
        ]


def warm_start_config(base: TrainConfig) -> TrainConfig:
    """The supervised phase of `base` alone."""
    return dataclasses.replace(base, steps=0)


def rl_config(
    base: TrainConfig,
    plan: Plan,
    setting: Setting,
    *,
    seed: int,
    warm_start: Path,
    tuning: bool = False,
) -> TrainConfig:
    """The RL of `base` as the comparison has it: from the warm start, the rest equal for all.

    Tuning is shorter and has held-out problems of its own.

    No entropy bonus, no KL, a constant learning rate after the warm-up of 10 updates, and no
    dynamic sampling, which would give each method other rollouts; a method's own are its ratio,
    clip and aggregation.
    """
    data = dataclasses.replace(base.data, seed=seed)
    evaluation = dataclasses.replace(
        base.evaluation, interval=plan.evaluation_interval, prompts=plan.held_out_prompts
    )
    if data.has_held_out:
        held_out = TUNING_HELD_OUT if tuning else HELD_OUT
        problems = dataclasses.replace(base.data, split="held_out", seed=held_out)
        evaluation = dataclasses.replace(evaluation, data=problems)
    return dataclasses.replace(
        base,
        initial=str(warm_start),
        warmstart=dataclasses.replace(base.warmstart, steps=0),
        data=data,
        evaluation=evaluation,
        checkpoint=dataclasses.replace(base.checkpoint, keep=1),
        objective=ObjectiveConfig(
            name=setting.method,
            eps_low=setting.eps_low,
            eps_high=setting.eps_high,
            probability_bins=PROBABILITY_BINS,
        ),
        optimizer=dataclasses.replace(
            base.optimizer,
            learning_rate=setting.learning_rate,
            schedule="constant",
            warmup_steps=10,
            decay_steps=None,
        ),
        steps=plan.tuning_steps if tuning else plan.steps,
        prompts_per_step=plan.prompts_per_step,
        updates_per_rollout=plan.updates_per_rollout,
        dynamic_sampling_rounds=1,
        rollouts_interval=plan.steps,
        seed=seed,
    )
