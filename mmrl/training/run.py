"""What the training loop carries, and how it comes back from disk."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import nnx

from mmrl import config as configs
from mmrl import slime
from mmrl.data import DataConfig, Example, example_batches, examples, supervised_batches
from mmrl.errors import UserError
from mmrl.models import Decoder
from mmrl.processes import exchange
from mmrl.report.metrics import MetricsWriter
from mmrl.rewards.runner import Reward
from mmrl.rewards.slime_functions import Filter, find_filter, reward_function
from mmrl.rollout.modes import with_modes, with_solution
from mmrl.sharding import Layout, replicated, reshard
from mmrl.training import checkpoint
from mmrl.training.config import TrainConfig
from mmrl.training.episodes import find_player
from mmrl.training.optimizer import OptimizerConfig, make_optimizer
from mmrl.training.state import (
    RunState,
    abstract_model,
    init_optimizer,
    init_params,
    load_initial,
    split_trained,
)

PHASES = ("warmstart", "rl")


class Run:
    """Configuration, arrays, iterators and position of a run; resumes from `workdir` by itself.

    The position is (phase, step within it). Checkpoints are numbered by the steps done in both
    phases, so number N of a run with W warm-start steps stands at RL step N - W.
    """

    state: RunState
    done: int
    phase: str
    optimizer_config: OptimizerConfig
    optimizer: optax.GradientTransformation
    reshard_seconds: float

    def __init__(self, config: TrainConfig, workdir: Path):
        self._started: float | None = time.perf_counter()
        self.config, self.workdir = config, workdir
        self.primary = jax.process_index() == 0
        self.mesh = jax.sharding.get_mesh()
        self.reward, self.keep = _functions(config)
        self.graphdef, _ = abstract_model(config.model)
        self.iterators = _iterators(config)
        self.held_out = held_out_examples(config)
        self.tokens_total = 0
        self.done = 0
        self.checkpoints = checkpoint.open_checkpoints(workdir, config.checkpoint)
        self._start_or_restore()
        if self.primary:
            configs.save_json(config, workdir / "config.json")
            config.tokenizer.save(workdir / "tokenizer.json")
        warm = config.warmstart.steps
        self.writer = MetricsWriter(
            workdir,
            resume_step=(self.done - warm if self.done > warm else self.done) or None,
            resume_phase="rl" if self.done > warm else "warmstart",
            primary=self.primary,
        )

    def model(self) -> Decoder:
        """The decoder with the parameters as they stand."""
        return nnx.merge(self.graphdef, self.state.params, self.state.frozen)

    @contextlib.contextmanager
    def decoding(self) -> Iterator[Decoder]:
        """The decoder, its parameters where the sampler has them; then they are moved back.

        `reshard_seconds` is what both ways took.
        """
        self.reshard_seconds = 0.0
        self._move_to("decode")
        try:
            yield self.model()
        finally:
            self._move_to("train")

    def _move_to(self, layout: Layout) -> None:
        start = time.perf_counter()
        params = reshard(self.state.params, layout, self.mesh)
        frozen = reshard(self.state.frozen, layout, self.mesh)
        self.state = replace(self.state, params=params, frozen=frozen)
        jax.block_until_ready((params, frozen))
        self.reshard_seconds += time.perf_counter() - start

    def enter(self, phase: str) -> int:
        """Begins or continues a phase, its start with a fresh optimizer; returns the steps done."""
        self.phase = phase
        self.optimizer_config = _optimizer_config(self.config, phase)
        self.optimizer = make_optimizer(self.optimizer_config)
        start = self.done - (self.config.warmstart.steps if phase == "rl" else 0)
        if start == 0:
            params = self.state.params
            offload = self.optimizer_config.offload
            opt_state = init_optimizer(self.optimizer, params, self.mesh, offload)
            keep = phase == "rl" and self.config.objective.kl_coefficient
            reference = jax.tree.map(jnp.copy, params) if keep else None
            self.state = replace(self.state, opt_state=opt_state, reference=reference)
        return start

    def first_step_seconds(self) -> dict[str, float]:
        """The metric of the first step after a start: all that came before, compilation too."""
        started, self._started = self._started, None
        return {} if started is None else {"time/first_step_seconds": time.perf_counter() - started}

    def save(self, step: int) -> None:
        """Starts to write a checkpoint after `step` of the current phase."""
        self.done = step + (self.config.warmstart.steps if self.phase == "rl" else 0)
        positions = {name: it.get_state() for name, it in self.iterators.items()}
        host = {"iterators": exchange(positions), "tokens_total": self.tokens_total}
        checkpoint.save(self.checkpoints, self.done, self.state, host)

    def _start_or_restore(self) -> None:
        key = jax.device_put(jax.random.key(self.config.seed), replicated(self.mesh))
        start, model = jax.random.fold_in(key, 0), self.config.model
        self.done = self.checkpoints.latest_step() or 0
        if self.config.initial is None or self.done:
            params, frozen = split_trained(init_params(model, start, self.mesh))
        else:
            loaded = load_initial(self.config.initial, model, start, self.mesh)
            params, frozen = split_trained(loaded)
        phase = "rl" if self.done > self.config.warmstart.steps else "warmstart"
        chosen = _optimizer_config(self.config, phase)
        opt_state = init_optimizer(make_optimizer(chosen), params, self.mesh, chosen.offload)
        keep = phase == "rl" and self.config.objective.kl_coefficient
        self.state = RunState(params, frozen, opt_state, key, params if keep else None)
        if self.done:
            self.state, host = checkpoint.restore(self.checkpoints, self.done, self.state)
            for name, state in _own_positions(host["iterators"]).items():
                self.iterators[name].set_state(state)
            self.tokens_total = host["tokens_total"]
            logging.info("Continuing %s from checkpoint %d.", self.workdir, self.done)


def held_out_examples(config: TrainConfig) -> list[Example]:
    """The evaluation's prompts: its own data, or the held-out split of generated training data.

    Training data from a file have no held-out split: then there are none, and no evaluation. With
    modes each prompt comes once in each.
    """
    data: DataConfig | None = config.evaluation.data
    if data is None and config.data.has_held_out:
        data = dataclasses.replace(config.data, split="held_out")
    if data is None:
        logging.warning("No evaluation: set config.evaluation.data to held-out rows.")
        return []
    dataset = examples(data)
    each = max(len(config.modes), 1)
    rows = range(min(config.evaluation.prompts // each, len(dataset)) * each)
    return with_modes([dataset[i // each] for i in rows], config.modes)


def _functions(config: TrainConfig) -> tuple[Reward, Filter | None]:
    """The reward, and the filter of groups if there is one; what makes episodes must be there."""
    arguments = slime.arguments(config)
    if config.has_episodes:
        find_player(config)
    key = None if config.group_reward else config.reward_key
    reward = reward_function(config.reward, arguments, key)
    if config.dynamic_sampling_filter is None:
        return reward, None
    return reward, find_filter(config.dynamic_sampling_filter, arguments)


def _iterators(config: TrainConfig) -> dict:
    processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
    iterators = {
        "rl": example_batches(config.data, batch_size=config.prompts_per_step, **processes)
    }
    warm = config.warmstart
    if warm.steps:
        iterators["warmstart"] = supervised_batches(
            config.data,
            config.tokenizer,
            batch_size=warm.batch_size,
            length=warm.length,
            pack=warm.pack,
            prepare=functools.partial(with_solution, modes=config.modes) if config.modes else None,
            **processes,
        )
    return iterators


def _own_positions(saved: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's iterator states of those that each process saved.

    All are equal, and any number of processes may continue, but for packed rows.
    """
    processes = jax.process_count()
    if len(saved) != processes and any(state != saved[0] for state in saved):
        raise UserError(
            f"the checkpoint is of {len(saved)} processes, each of which packed rows of the warm "
            f"start for itself; {processes} cannot continue it: start {len(saved)}, or choose "
            "another --workdir"
        )
    return saved[jax.process_index() % len(saved)]


def _optimizer_config(config: TrainConfig, phase: str) -> OptimizerConfig:
    return config.optimizer if phase == "rl" else config.warmstart.optimizer
