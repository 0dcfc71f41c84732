"""The judged groups of a step, from which its batch is taken (dynamic sampling, DAPO section 3.2).

Without `off_policy` these are the rounds that the step draws. With it they are also the groups that
earlier steps left: judged ones that had no room, and unfinished ones that are drawn on first.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from mmrl.data import Status
from mmrl.models import Decoder
from mmrl.rollout import Rollout
from mmrl.rollout.partial import continued, pending
from mmrl.training.off_policy import ages, join, on_host, select, split_finished, take
from mmrl.training.rollouts import (
    filtered,
    keep_informative,
    outcomes,
    reward_rollout,
    rollout_metrics,
    with_advantages,
)
from mmrl.training.run import Run

DUE, CONTINUED, FILLED = (2**30 + i for i in range(3))  # random numbers apart from the rounds'


class Pool:
    """Takes up what a step draws and judges it; `batch` is what the step trains on.

    What it draws is drawn by the weights that `version` RL steps have made.
    """

    def __init__(self, run: Run, step: int, version: int):
        self.run, self.step, self.config, self.carry = run, step, run.config, run.carry
        self.version = version
        self.rounds = 0
        self._parts: list[Rollout] = []
        self._worth: list[np.ndarray] = []
        self._metrics: list[dict[str, float]] = []
        self._judged: list[int] = []  # groups
        self._expired = 0

    @property
    def lacks(self) -> bool:
        """Whether another round is to be drawn."""
        enough = sum(int(worth.sum()) for worth in self._worth) >= self.config.prompts_per_step
        return self.rounds < self.config.dynamic_sampling_rounds and not (enough and self._metrics)

    def take_up_earlier(self, model: Decoder) -> None:
        """Groups that earlier steps left; unfinished ones are drawn on, the oldest to the end."""
        if not self.config.off_policy.carries:
            return
        most, carry = self.config.off_policy.most_carried, self.carry
        self._expired = carry.age(self.version, most, self.config.sampling.max_new_tokens)
        if carry.kept is not None:
            self._parts.append(carry.kept)
            self._worth.append(np.ones(len(carry.kept.lengths), bool))
        if carry.unfinished is not None:
            due = ages(carry.unfinished) >= most
            old, young = (take(carry.unfinished, np.flatnonzero(x)) for x in (due, ~due))
            carry.unfinished = None
            self._sort(self._drawn_on(model, old, DUE, to_the_end=True))
            self._sort(self._drawn_on(model, young, CONTINUED))

    def add(self, drawn: Rollout, played: dict[str, float]) -> None:
        """A round of fresh groups, and what was measured while they were drawn."""
        self.rounds += 1
        if not self.config.off_policy.carries:
            self._judge(drawn, played)
            return
        groups = on_host(drawn, self.config.sampling.max_new_tokens)
        self._sort(pending(groups, self.config.sampling.max_new_tokens))

    def fill(self, model: Decoder) -> None:
        """Draws unfinished groups to their end, the oldest first, where groups are lacking."""
        found = sum(len(part.lengths) for part in self._parts)
        lacking = max(self.config.prompts_per_step - found, 0 if self._metrics else 1)
        waiting = self.carry.unfinished
        if waiting is not None and lacking:
            order = np.argsort(-ages(waiting), kind="stable")
            self.carry.unfinished = take(waiting, np.sort(order[lacking:]))
            oldest = take(waiting, np.sort(order[:lacking]))
            self._sort(self._drawn_on(model, oldest, FILLED, to_the_end=True))

    def batch(self) -> tuple[Rollout, dict[str, Any]]:
        """The step's rollout with advantages, and means over all groups that were judged in it.

        So dynamic sampling does not colour the metrics.
        """
        prompts, run = self.config.prompts_per_step, self.run
        names = dict.fromkeys(name for metrics in self._metrics for name in metrics)
        means: dict[str, Any] = {name: self._mean(name) for name in names}
        judged = self._worth[len(self._worth) - len(self._judged) :]
        means["reward/informative"] = sum(int(w.sum()) for w in judged) / sum(self._judged)
        means |= run.prompts.metrics(self.step)
        if not self.config.off_policy.carries:
            rollout = keep_informative(self._parts, prompts, self._worth)
            return with_advantages(rollout, self.config), means
        rollout, self.carry.kept = select(self._parts, self._worth, prompts)
        for name, left in (("kept", self.carry.kept), ("unfinished", self.carry.unfinished)):
            means[f"rollout/{name}"] = 0 if left is None else len(left.lengths)
        means["rollout/expired"] = self._expired
        return with_advantages(rollout, self.config), means

    def _mean(self, name: str) -> float:
        having = [i for i, metrics in enumerate(self._metrics) if name in metrics]
        values = [self._metrics[i][name] for i in having]
        return float(np.average(values, weights=[self._judged[i] for i in having]))

    def _drawn_on(
        self, model: Decoder, groups: Rollout | None, number: int, to_the_end: bool = False
    ) -> Rollout | None:
        """The groups with `partial_tokens` more of each response, or with all, piece by piece."""
        config = self.config
        stop_ids = config.sampling.stop_ids or config.tokenizer.stop_ids
        key = self.run.key(self.step)
        while groups is not None and (groups.status == int(Status.PENDING)).any():
            key = jax.random.fold_in(key, number)
            groups = continued(
                model,
                groups,
                replace(config.sampling, stop_ids=stop_ids),
                key,
                tokens=config.off_policy.partial_tokens,
                memory_fraction=config.cache_memory_fraction,
                layout="decode",
            )
            if not to_the_end:
                break
        return groups

    def _sort(self, groups: Rollout | None) -> None:
        """Judges the groups that are finished; the others wait."""
        finished, unfinished = split_finished(groups)
        self.carry.unfinished = join([self.carry.unfinished, unfinished])
        if finished is not None:
            self._judge(finished)

    def _judge(self, groups: Rollout, played: Mapping[str, float] = MappingProxyType({})) -> None:
        scored, metrics = reward_rollout(groups, self.run.reward, self.config)
        self.run.prompts.pass_rates.observe(outcomes(scored))
        scored, worth = filtered(scored, self.run.keep, self.config.episodes)
        self._parts.append(scored)
        self._worth.append(worth)
        self._judged.append(len(worth))
        self._metrics.append({**played} | metrics | rollout_metrics(scored))
