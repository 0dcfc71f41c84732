"""Episodes of a training step: played by continuous batching on the run's mesh, then a rollout."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmrl import slime
from mmrl.data import Example
from mmrl.environments import Episode, episodes_rollout, find_environment, play
from mmrl.environments.config import STATUSES
from mmrl.errors import UserError, user_mistakes
from mmrl.models import Decoder
from mmrl.processes import exchange, gather_rows, share
from mmrl.rollout import Rollout, SamplingConfig
from mmrl.rollout.continuous import ContinuousBatch, Session
from mmrl.rollout.lockstep import LockstepBatch
from mmrl.sharding import Layout, replicated
from mmrl.slime.generate import find_generation, generated
from mmrl.training.config import TrainConfig

Player = Callable[[Session, Example], Coroutine[Any, Any, Episode]]


def find_player(config: TrainConfig) -> Player:
    """What makes an episode of an example, in a session of its own.

    Raises `UserError` where the config names what is not there, or does not go with the job.
    """
    if config.episodes.overlap and jax.process_count() > 1:
        raise UserError("config.episodes.overlap is for one process: set it to false")
    tokenizer, limits = config.tokenizer, config.episodes.limits
    if config.custom_generate is not None:
        function = find_generation(config.custom_generate, slime.arguments(config), tokenizer)
        return lambda session, example: generated(function, session, example, tokenizer, limits)
    assert config.environment is not None
    make = find_environment(config.environment)
    return lambda session, example: play(session, make(example), example, tokenizer, limits)


def sample_episodes(
    model: Decoder,
    batch: list[Example],
    config: TrainConfig,
    sampling: SamplingConfig,
    key: jax.Array,
    *,
    first: int = 0,
    layout: Layout = "decode",
) -> tuple[Rollout, dict[str, float]]:
    """A group of episodes for each example of all processes; each process plays its own examples'.

    An episode's random numbers depend on `key`, the number of its prompt, counted from `first`, and
    its own in the group. `layout` says where the model's parameters lie on the mesh.
    Returns the rollout, whose metadata are this process's episodes, and metrics:
    `rollout/occupancy` (see `ContinuousBatch`) and `episode_metrics`.
    """
    player, limits = find_player(config), config.episodes.limits
    prompts, size = sum(exchange(len(batch))), sampling.group_size
    sampling = replace(
        sampling,
        stop_ids=sampling.stop_ids or config.tokenizer.stop_ids,
        max_new_tokens=limits.turn_tokens,
    )
    decoder = (ContinuousBatch if config.episodes.overlap else LockstepBatch)(
        model,
        rows=min(config.episodes.rows, config.prompts_per_step * config.sampling.group_size),
        context=config.prompt_length + limits.tokens + 1,
        layout=layout,
    )

    keys = _keys(key, first + jnp.arange(prompts), sampling.group_size)

    async def play_all() -> list[Episode]:
        sessions = _own_sessions(decoder, sampling, np.asarray(keys))
        episodes = (player(session, batch[i // size]) for i, session in enumerate(sessions))
        played = await asyncio.gather(*episodes)
        await decoder.finished()
        return played

    played = asyncio.run(play_all())
    groups = [played[i : i + size] for i in range(0, len(played), size)]
    with user_mistakes():
        own = episodes_rollout(groups, sampling, config.prompt_length, limits.tokens)
    arrays = jax.tree.map(gather_rows, own.arrays())
    metadata: list[Any] = [None] * prompts
    metadata[share(prompts).start : share(prompts).stop] = groups
    rollout = jax.device_put(arrays, replicated(jax.sharding.get_mesh()))
    metrics = {"rollout/occupancy": decoder.occupancy} | episode_metrics(played)
    return rollout.replace(metadata=tuple(metadata)), metrics


def _own_sessions(
    decoder: ContinuousBatch, sampling: SamplingConfig, keys: np.ndarray
) -> list[Session]:
    """Opens the sessions of all processes, in one order on all; returns this one's."""
    own, sessions = share(len(keys)), []
    for p, g in np.ndindex(keys.shape[:2]):
        if p in own:
            sessions.append(decoder.open(keys[p, g], sampling))
        else:
            assert isinstance(decoder, LockstepBatch)
            decoder.open(keys[p, g], sampling, own=False)
    return sessions


@functools.partial(jax.jit, static_argnums=2)
def _keys(key: jax.Array, prompts: jax.Array, group: int) -> jax.Array:
    """The data of each episode's key [P, G, …]; `generate`'s for prompts of these seeds."""
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    of_group = jax.vmap(fold_in, in_axes=(0, None))
    return jax.random.key_data(of_group(fold_in(key, prompts), jnp.arange(group)))


def episode_metrics(played: Sequence[Episode]) -> dict[str, float]:
    """Means over the episodes of all processes.

    `episode/turns_mean`, `episode/drawn_tokens_mean` (without what came back), the shares
    `episode/status/NAME`, and all metrics of the environment's, 0 where an episode has not got one.
    """
    own = [(e.turns, sum(e.mask), e.status.value, dict(e.metrics), e.error) for e in played]
    turns, drawn, statuses, measured, errors = zip(
        *(one for part in exchange(own) for one in part), strict=True
    )
    failures = [error for error in errors if error is not None]
    if failures:
        logging.warning(
            "%d of %d episodes failed, the first: %s", len(failures), len(turns), failures[0]
        )
    found = {
        "episode/turns_mean": float(np.mean(turns)),
        "episode/drawn_tokens_mean": float(np.mean(drawn)),
    }
    for status in STATUSES:
        found[f"episode/status/{status}"] = statuses.count(status) / len(statuses)
    for name in sorted({name for metrics in measured for name in metrics}):
        label = name if "/" in name else f"environment/{name}"
        found[label] = float(np.mean([metrics.get(name, 0.0) for metrics in measured]))
    return found
