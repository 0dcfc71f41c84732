"""Trains a policy: supervised phases, then reinforcement learning on its own rollouts.

    python -m mmrl.train --config=configs/quickstart.py --workdir=runs/quickstart

slime's flags are understood as well, with a config or in place of one (`mmrl.slime`):

    python -m mmrl.train --hf-checkpoint DIR --prompt-data FILE --rm-type math --save runs/mine

The run continues from its last checkpoint if `workdir` holds one. Ctrl-C or SIGTERM saves it.
"""

import functools
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from mmrl import config as configs
from mmrl import distributed, slime
from mmrl.compilation import enable_compilation_cache
from mmrl.data import Example, prompt_tokens
from mmrl.errors import UserError, user_mistakes
from mmrl.models import Decoder
from mmrl.processes import any_process, everywhere, gather_rows, share
from mmrl.report.html import write_report
from mmrl.report.metrics import write_rollouts
from mmrl.report.progress import Progress, print_summary
from mmrl.rollout import Rollout, SamplingConfig
from mmrl.rollout.memory import generate_within
from mmrl.rollout.modes import mode_limits, with_modes
from mmrl.rollout.sampler import packed_size, pad_prompts
from mmrl.sharding import make_mesh, split_mesh
from mmrl.training.config import TrainConfig
from mmrl.training.episodes import sample_episodes
from mmrl.training.flops import peak_flops, step_flops
from mmrl.training.interrupts import stop_requests
from mmrl.training.off_policy import is_fresh, staleness_metrics
from mmrl.training.optimizer import check_skips, learning_rate, skips
from mmrl.training.pool import Pool
from mmrl.training.rollouts import reward_rollout, rollout_rows
from mmrl.training.run import Run
from mmrl.training.update import (
    Metrics,
    merge_updates,
    policy_update,
    score_logprobs,
    supervised_update,
)

Round = tuple[Rollout, dict[str, float]]  # responses, and what episodes measured

_CONFIG = flags.DEFINE_string("config", None, "Config file: Python with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_STOPPED = flags.DEFINE_integer(
    "stopped_exit_status", 0, "Exit status of a run that was asked to stop, for a launcher to see."
)
flags.adopt_module_key_flags(distributed)


def train(config: TrainConfig, workdir: Path) -> bool:
    """Runs or continues the run in `workdir`; False if it was asked to stop before its end."""
    phases = [
        (phase, steps, rl_step if phase == "rl" else supervised_step)
        for phase, steps in config.phases.items()
    ]
    mesh, rollout_mesh = meshes(config)
    with jax.set_mesh(mesh), stop_requests() as stop:
        with user_mistakes():
            run = Run(config, workdir, rollout_mesh)
        with run.writer:
            try:
                finished = all(run_phase(run, *phase, stop) for phase in phases)
            finally:
                run.checkpoints.wait_until_finished()
    if run.primary:
        write_report(workdir)
        print_summary(workdir)
    return finished


def meshes(config: TrainConfig) -> tuple[Mesh, Mesh | None]:
    """The mesh of the run, and that of rollouts drawn ahead where it is another."""
    with user_mistakes():
        if config.off_policy.rollout_mesh is None:
            return make_mesh(config.mesh), None
        return split_mesh(config.mesh, config.off_policy.rollout_mesh, jax.devices())


def run_phase(
    run: Run,
    phase: str,
    steps: int,
    step_function: Callable[[Run, int], dict[str, Any]],
    stop: threading.Event,
) -> bool:
    """The loop over a phase's steps, evaluated at its ends; False if it was asked to stop."""
    start = run.enter(phase)
    if start >= steps:
        return True
    with Progress(steps, phase=phase, start_step=start, primary=run.primary) as progress:

        def record(step: int, metrics: dict[str, Any]) -> None:
            run.writer.write(step, metrics, phase)
            progress.update(step, metrics)

        if start == 0:
            record(0, evaluate(run))
        for step in range(start + 1, steps + 1):
            metrics = step_function(run, step) | run.first_step_seconds()
            last = step == steps
            if phase == "rl" and (last or step % run.config.evaluation.interval == 0):
                metrics |= evaluate(run)
            record(step, metrics)
            check_skips(run.optimizer_config, run.state.opt_state)
            stopping = any_process(stop.is_set())
            if last or stopping or step % run.config.checkpoint.interval == 0:
                run.save(step)
            if stopping:
                logging.info(
                    "Stopped after step %d of %s; the same command continues.", step, phase
                )
                return False
    return True


def rl_step(run: Run, step: int) -> dict[str, Any]:
    """Draw prompts, roll out, score, compute advantages, update."""
    start = time.perf_counter()
    rollout, metrics = drawn_ahead(run, step) or draw_now(run, step)
    rollout_end = time.perf_counter()
    ahead = begin_ahead(run, step + 1)
    updates = update_policy(run, rollout)
    if ahead is not None:  # the device updates while the host judges
        with jax.set_mesh(run.rollout_mesh):
            run.carry.ahead = collect_rollout(run, step + 1, *ahead)
    metrics |= update_metrics(run, rollout, updates)
    metrics |= throughput_metrics(run, rollout, start, rollout_end)
    if run.primary and step % run.config.rollouts_interval == 0:
        write_rollouts(run.workdir, step, rollout_rows(rollout, step, run.config.tokenizer))
    return metrics | run.follow_stages(metrics)


def draw_now(run: Run, step: int) -> tuple[Rollout, dict[str, Any]]:
    """The step's rollout by the weights as they stand."""
    with run.decoding() as model:
        rollout, metrics = collect_rollout(run, step, model)
    return rollout, metrics | {"time/reshard_seconds": run.reshard_seconds}


def drawn_ahead(run: Run, step: int) -> tuple[Rollout, dict[str, Any]] | None:
    """The step's rollout where the step before has drawn it already."""
    return run.carry.take_ahead(step - 1, run.config.sampling.max_new_tokens)


def begin_ahead(run: Run, step: int) -> tuple[Decoder, Round] | None:
    """Starts to draw the rollout of `step`, the next, with the weights before this step's update.

    Nothing waits for it, so that its judging overlaps with the update. None where this is off.
    """
    if not run.config.off_policy.overlap or step > run.config.steps:
        return None
    model = run.snapshot()
    with jax.set_mesh(run.rollout_mesh):
        return model, draw_round(run, step, model, 0)


def collect_rollout(
    run: Run, step: int, model: Decoder, first: Round | None = None
) -> tuple[Rollout, dict[str, Any]]:
    """The step's rollout with rewards and advantages, drawn again while groups lack information.

    `first` is its first round where that was drawn ahead, a step before, as all of it is then;
    groups that earlier steps left come before it.
    """
    pool = Pool(run, step, version=step - 1 if first is None else step - 2)
    pool.take_up_earlier(model)
    if first is not None:
        pool.add(*first)
    while pool.lacks:
        pool.add(*draw_round(run, step, model, pool.rounds))
    pool.fill(model)
    return pool.batch()


def draw_round(run: Run, step: int, model: Decoder, number: int) -> Round:
    """Round `number` of a step: responses to new prompts, or as much of them as a step draws."""
    config = run.config
    batch = run.prompts.draw(step)
    batch = with_modes(batch, config.modes, first=jax.process_index() * len(batch))
    sampling = config.sampling
    if config.off_policy.partial_tokens is not None:
        tokens = min(config.off_policy.partial_tokens, sampling.max_new_tokens)
        sampling = replace(sampling, max_new_tokens=tokens)
    return sample(model, batch, config, sampling, run.key(step, number))


def sample(
    model: Decoder,
    batch: list[Example],
    config: TrainConfig,
    sampling: SamplingConfig,
    key: jax.Array,
) -> tuple[Rollout, dict[str, float]]:
    """Responses to the examples of all processes; this one's become the rollout's metadata.

    They may be episodes in an environment, which have metrics of their own.
    """
    if config.has_episodes:
        return sample_episodes(model, batch, config, sampling, key)
    tokenizer = config.tokenizer
    with user_mistakes():
        tokens = [prompt_tokens(example, tokenizer) for example in batch]
        own = pad_prompts(tokens, config.prompt_length)
    prompts = gather_rows(own[0]), gather_rows(own[1])
    sampling = replace(sampling, stop_ids=sampling.stop_ids or tokenizer.stop_ids)
    limits = mode_limits(config.modes, len(prompts[1]), sampling.group_size)
    fraction = config.cache_memory_fraction
    rollout = generate_within(fraction, model, prompts, sampling, key, layout="decode", **limits)
    metadata: list[Example | None] = [None] * len(prompts[1])
    for row, example in zip(share(len(metadata)), batch, strict=True):
        metadata[row] = example
    return rollout.replace(metadata=tuple(metadata)), {}


def update_policy(run: Run, rollout: Rollout) -> list[Metrics]:
    """The optimizer steps of one rollout, each on its share of the prompts; does not wait."""
    config, state = run.config, run.state
    shared: dict[str, Any] = dict(
        frozen=state.frozen, graphdef=run.graphdef, temperature=config.sampling.temperature
    )
    params, opt_state, updates = state.params, state.opt_state, []
    parts = rollout.split(config.updates_per_rollout)
    score = functools.partial(score_logprobs, **shared, micro_batches=config.micro_batches)
    scores: list[dict[str, jax.Array]] = [{} for _ in parts]
    for part, extra in zip(parts, scores, strict=True):
        if config.objective.kl_coefficient:
            extra["reference_logprobs"] = score(state.reference, part.arrays())
        if config.objective.tis_high is not None:
            extra["old_logprobs"] = score(params, part.arrays())
    sizes: list[int | None] = [None] * len(parts)
    if config.packed_updates:
        lengths = np.split(everywhere(rollout.lengths), len(parts))
        sizes = [packed_size(x, rollout.tokens.shape[-1], config.micro_batches) for x in lengths]
    for part, extra, size in zip(parts, scores, sizes, strict=True):
        params, opt_state, metrics = policy_update(
            params,
            opt_state,
            part.arrays(),
            extra,
            **shared,
            optimizer=run.optimizer,
            objective=config.objective,
            micro_batches=config.micro_batches,
            packed=size,
        )
        updates.append(metrics)
    run.state = replace(state, params=params, opt_state=opt_state)
    return updates


def update_metrics(run: Run, rollout: Rollout, updates: list[Metrics]) -> dict[str, float]:
    """What the updates report, and how old the tokens were that they trained on."""
    metrics = merge_updates(jax.device_get(updates)) | optimizer_metrics(run)
    if rollout.staleness is None:
        return metrics
    if not is_fresh(rollout, len(updates)):  # nothing was drawn and scored by the same weights
        metrics = {k: v for k, v in metrics.items() if not k.startswith("logprob/")}
    return metrics | staleness_metrics(rollout)


def supervised_step(run: Run, step: int) -> dict[str, Any]:
    """One step of next-token prediction, on texts or on worked solutions."""
    start = time.perf_counter()
    batch = next(run.iterators[run.phase])
    params, opt_state, metrics = supervised_update(
        run.state.params,
        run.state.opt_state,
        {name: gather_rows(batch[name]) for name in ("tokens", "segment_ids", "mask")},
        frozen=run.state.frozen,
        graphdef=run.graphdef,
        optimizer=run.optimizer,
    )
    run.state = replace(run.state, params=params, opt_state=opt_state)
    metrics = jax.device_get(metrics) | optimizer_metrics(run)
    return metrics | {"time/step_seconds": time.perf_counter() - start}


def evaluate(run: Run) -> dict[str, float]:
    """One response to each held-out prompt, the same prompts and random numbers every time."""
    if not run.held_out:
        return {}
    config = run.config
    sampling = replace(config.sampling, group_size=1, temperature=config.evaluation.temperature)
    own = [run.held_out[row] for row in share(len(run.held_out))]
    with run.decoding() as model:
        rollout, played = sample(model, own, config, sampling, jax.random.key(0))
    rollout, metrics = reward_rollout(rollout, run.reward, config)
    return {
        "eval/reward": float(rollout.reward.mean()),
        "eval/solved": metrics["reward/solved"],
        "eval/length_mean": float(rollout.lengths.mean()),
        **{
            f"eval/{name.partition('/')[2]}": value
            for name, value in (played | metrics).items()
            if name.startswith(("mode/", "episode/"))
        },
    }


def optimizer_metrics(run: Run) -> dict[str, float]:
    return {
        "optimizer/lr": float(learning_rate(run.optimizer_config, run.state.opt_state)),
        "optimizer/skipped": int(skips(run.state.opt_state)[1]),
    }


def throughput_metrics(
    run: Run, rollout: Rollout, start: float, rollout_end: float
) -> dict[str, float]:
    """Seconds, response tokens a second of the whole step, and the share of the peak FLOP/s."""
    end = time.perf_counter()
    responses, prompts = int(rollout.lengths.sum()), int(rollout.prompt_lengths.sum())
    run.tokens_total += responses
    flops = step_flops(run.config.model, prompt_tokens=prompts, response_tokens=responses)
    return {
        "time/rollout_seconds": rollout_end - start,
        "time/update_seconds": end - rollout_end,
        "time/step_seconds": end - start,
        "throughput/tokens_per_second": responses / (end - start),
        "throughput/mfu": flops / (end - start) / peak_flops(),
        "tokens/total": run.tokens_total,
    }


def main(argv: list[str], overrides: dict[str, str], given: slime.Given) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --config.{argv[1]}")
    with distributed.job():
        config, workdir = slime.configure(_CONFIG.value, _WORKDIR.value, given, overrides)
        enable_compilation_cache()
        gc.set_threshold(100_000)  # tracing makes many objects and little garbage
        try:
            finished = train(config, workdir)
        except FloatingPointError as error:
            raise UserError(str(error)) from error
    if not finished:
        sys.exit(_STOPPED.value)


if __name__ == "__main__":
    configs.run(main, overrides=True, further=lambda argv: slime.split_argv(argv, set(flags.FLAGS)))
