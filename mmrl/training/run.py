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
from jax.sharding import Mesh

from mmrl import config as configs
from mmrl import slime
from mmrl.data import DataConfig, Example, examples, supervised_batches
from mmrl.data.pipeline import document_batches
from mmrl.data.prompts import PromptStream
from mmrl.errors import UserError
from mmrl.models import Decoder
from mmrl.processes import exchange
from mmrl.report.metrics import MetricsWriter
from mmrl.rewards.mixture import by_part
from mmrl.rewards.runner import Reward
from mmrl.rewards.slime_functions import Filter, find_filter, reward_function
from mmrl.rollout.modes import with_modes, with_solution
from mmrl.sharding import Layout, layout, replicated, reshard, shardings
from mmrl.training import checkpoint
from mmrl.training.ahead import compile_ahead
from mmrl.training.config import TrainConfig
from mmrl.training.episodes import find_player
from mmrl.training.off_policy import Carry, restored
from mmrl.training.optimizer import OptimizerConfig, make_optimizer
from mmrl.training.rollouts import with_samples
from mmrl.training.stages import StageState, advance
from mmrl.training.state import (
    RunState,
    abstract_model,
    init_optimizer,
    init_params,
    load_initial,
    split_trained,
)


class Run:
    """Configuration, arrays, iterators and position of a run; resumes from `workdir` by itself.

    The position is (phase, step within it). Checkpoints are numbered by the steps done in all
    phases, so number N of a run with W supervised steps stands at RL step N - W.
    """

    state: RunState
    stage: StageState
    done: int
    phase: str
    optimizer_config: OptimizerConfig
    optimizer: optax.GradientTransformation
    reshard_seconds: float

    def __init__(self, config: TrainConfig, workdir: Path, rollout_mesh: Mesh | None = None):
        """On the current mesh; what is drawn ahead is drawn on `rollout_mesh`, if it is another."""
        self._started: float | None = time.perf_counter()
        self._given, self.workdir = config, workdir
        self.stage = StageState()
        for index in range(len(config.length_stages.stages)):
            config.at_stage(index)  # what does not fit fails now
        self.config = config.at_stage(0)
        if config.off_policy.carries and jax.process_count() > 1:
            raise UserError("off_policy.max_staleness must be 0 in a job of several processes")
        self.carry = Carry()
        self.primary = jax.process_index() == 0
        self.mesh = jax.sharding.get_mesh()
        self.rollout_mesh = rollout_mesh or self.mesh
        self.reward, self.keep = _functions(config)
        self.graphdef, _ = abstract_model(config.model)
        self.checkpoints = checkpoint.open_checkpoints(workdir, config.checkpoint)
        done = self.checkpoints.latest_step() or 0
        ends = ((phase, steps_before(config, phase) + n) for phase, n in config.phases.items())
        compile_ahead(self.config, next((p for p, end in ends if end > done), "rl"), self.mesh)
        self.iterators = _iterators(config)
        self.held_out = held_out_examples(config)
        self.tokens_total = 0
        self.reshard_seconds = 0.0
        self.done = 0
        self._start_or_restore()
        if self.primary:
            configs.save_json(config, workdir / "config.json")
            config.tokenizer.save(workdir / "tokenizer.json")
        phase, step = position(config, self.done)
        self.writer = MetricsWriter(
            workdir, resume_step=step or None, resume_phase=phase, primary=self.primary
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

    @property
    def prompts(self) -> PromptStream:
        """Where RL draws its prompts."""
        return self.iterators["rl"]

    def snapshot(self) -> Decoder:
        """The decoder with a copy of the parameters, on the rollout mesh, for use later."""
        state = (self.state.params, self.state.frozen)
        with layout("decode"):
            places = shardings(state, self.rollout_mesh)
        return nnx.merge(self.graphdef, *jax.device_put(state, places, may_alias=False))

    def key(self, *numbers: int) -> jax.Array:
        """The random key of a step, a round, …, on the current mesh."""
        key = jax.device_put(self.state.key, replicated(jax.sharding.get_mesh()))
        return functools.reduce(jax.random.fold_in, numbers, key)

    def _move_to(self, name: Layout) -> None:
        start = time.perf_counter()
        params = reshard(self.state.params, name, self.mesh)
        frozen = reshard(self.state.frozen, name, self.mesh)
        self.state = replace(self.state, params=params, frozen=frozen)
        jax.block_until_ready((params, frozen))
        self.reshard_seconds += time.perf_counter() - start

    def enter(self, phase: str) -> int:
        """Begins or continues a phase, its start with a fresh optimizer; returns the steps done."""
        self.phase = phase
        self.optimizer_config = _optimizer_config(self.config, phase)
        self.optimizer = make_optimizer(self.optimizer_config)
        start = self.done - steps_before(self.config, phase)
        if start == 0:
            params = self.state.params
            offload = self.optimizer_config.offload
            opt_state = init_optimizer(self.optimizer, params, self.mesh, offload)
            keep = phase == "rl" and self.config.objective.kl_coefficient
            reference = jax.tree.map(jnp.copy, params) if keep else None
            self.state = replace(self.state, opt_state=opt_state, reference=reference)
        return start

    def follow_stages(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Notes how long and how sure the step's responses were; the next stage may follow."""
        stages = self._given.length_stages
        if not stages.stages:
            return {}
        before, limit = self.stage.index, self.config.sampling.max_new_tokens
        figures = metrics["response/perplexity"], metrics["response/length_p99"]
        self.stage = advance(stages, self.stage, *figures)
        if self.stage.index != before:
            self._enter_stage()
        return {"stage/index": before, "stage/max_new_tokens": limit}

    def _enter_stage(self) -> None:
        """The config of the stage; whatever it changes is compiled anew, and nothing else."""
        old, self.config = self.config, self._given.at_stage(self.stage.index)
        if self.phase == "rl" and self.config.optimizer != old.optimizer:
            self.optimizer_config = self.config.optimizer
            self.optimizer = make_optimizer(self.optimizer_config)

    def first_step_seconds(self) -> dict[str, float]:
        """The metric of the first step after a start: all that came before, compilation too."""
        started, self._started = self._started, None
        return {} if started is None else {"time/first_step_seconds": time.perf_counter() - started}

    def save(self, step: int) -> None:
        """Starts to write a checkpoint after `step` of the current phase."""
        self.done = step + steps_before(self.config, self.phase)
        positions = {name: it.get_state() for name, it in self.iterators.items()}
        host = {
            "iterators": exchange(positions),
            "tokens_total": self.tokens_total,
            "stage": vars(self.stage),
        }
        carried, host["carried"] = self.carry.saved()
        checkpoint.save(self.checkpoints, self.done, self.state, host, carried)

    def _start_or_restore(self) -> None:
        key = jax.device_put(jax.random.key(self.config.seed), replicated(self.mesh))
        start, model = jax.random.fold_in(key, 0), self.config.model
        self.done = self.checkpoints.latest_step() or 0
        if self.config.initial is None or self.done:
            params, frozen = split_trained(init_params(model, start, self.mesh))
        else:
            loaded = load_initial(self.config.initial, model, start, self.mesh)
            params, frozen = split_trained(loaded)
        phase, _ = position(self.config, self.done)
        chosen = _optimizer_config(self.config, phase)
        opt_state = init_optimizer(make_optimizer(chosen), params, self.mesh, chosen.offload)
        keep = phase == "rl" and self.config.objective.kl_coefficient
        self.state = RunState(params, frozen, opt_state, key, params if keep else None)
        if self.done:
            self.state, host, carried = checkpoint.restore(self.checkpoints, self.done, self.state)
            for name, state in _own_positions(host["iterators"]).items():
                self.iterators[name].set_state(state)
            self.tokens_total = host["tokens_total"]
            self.stage = StageState.of(host["stage"])
            self.config = self._given.at_stage(self.stage.index)
            self.carry = self._restored_carry(carried, host["carried"])
            logging.info("Continuing %s from checkpoint %d.", self.workdir, self.done)

    def _restored_carry(self, arrays: dict[str, Any], host: dict[str, Any]) -> Carry:
        """What the step before left: its prompts are read again from their places in the data."""
        found = {}
        for name, fields in arrays.items():
            rollout = restored(fields, tuple(self.prompts.at(host[name])))
            judged = name != "unfinished"
            found[name] = with_samples(rollout, self.config.tokenizer) if judged else rollout
        ahead = (found["ahead"], host["metrics"]) if "ahead" in found else None
        return Carry(host["version"], found.get("kept"), found.get("unfinished"), ahead)


def steps_before(config: TrainConfig, phase: str) -> int:
    """The steps of all phases before this one."""
    names = list(config.phases)
    return sum(config.phases[name] for name in names[: names.index(phase)])


def position(config: TrainConfig, done: int) -> tuple[str, int]:
    """(phase, steps done in it) after so many steps in all."""
    begun = [phase for phase in config.phases if steps_before(config, phase) < done]
    phase = begun[-1] if begun else next(iter(config.phases))
    return phase, done - steps_before(config, phase)


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
    if any(part.reward for part in config.mixture):
        further = [part.reward or config.reward for part in config.mixture]
        reward = by_part([reward, *(reward_function(path, arguments, key) for path in further)])
    if config.dynamic_sampling_filter is None:
        return reward, None
    return reward, find_filter(config.dynamic_sampling_filter, arguments)


def _iterators(config: TrainConfig) -> dict[str, Any]:
    processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
    iterators: dict[str, Any] = {
        "rl": PromptStream(
            config.data,
            config.mixture,
            config.curriculum,
            prompts=config.prompts_per_step,
            places=config.off_policy.carries,
            **processes,
        )
    }
    for phase, part in (("pretraining", config.pretraining), ("warmstart", config.warmstart)):
        if not part.steps:
            continue
        data = [(source.data, source.weight) for source in part.data] or config.data
        shape = dict(batch_size=part.batch_size, length=part.length)
        if part.documents:
            iterators[phase] = document_batches(data, config.tokenizer, **shape, **processes)
            continue
        prepare = functools.partial(with_solution, modes=config.modes) if config.modes else None
        iterators[phase] = supervised_batches(
            data, config.tokenizer, **shape, pack=part.pack, prepare=prepare, **processes
        )
    return iterators


def _own_positions(saved: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's iterator states of those that each process saved.

    All are equal, and any number of processes may continue, but for packed rows and a curriculum.
    """
    processes = jax.process_count()
    if len(saved) != processes and any(state != saved[0] for state in saved):
        raise UserError(
            f"the checkpoint is of {len(saved)} processes, each of which packed rows of the warm "
            f"start or chose prompts for itself; {processes} cannot continue it: start "
            f"{len(saved)}, or choose "
            "another --workdir"
        )
    return saved[jax.process_index() % len(saved)]


def _optimizer_config(config: TrainConfig, phase: str) -> OptimizerConfig:
    return config.optimizer if phase == "rl" else getattr(config, phase).optimizer
