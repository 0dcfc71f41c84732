"""Responses that are drawn over several weights: cut at a number of tokens, continued later.

A continuation reads prompt and partial response again, by the new weights and the same forward, and
draws on. Tokens keep the log-probabilities of the weights that drew them.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmrl.data.records import Status
from mmrl.models import Decoder
from mmrl.rollout.memory import generate_within
from mmrl.rollout.rollout import Rollout
from mmrl.rollout.sampling import SamplingConfig, certain_streak
from mmrl.sharding import Layout

LEAST_ROWS, ROW_STEP = 16, 4


def pending(rollout: Rollout, max_new_tokens: int) -> Rollout:
    """The rollout, on the host, with PENDING where a response was cut before its limit."""
    cut = (rollout.status == int(Status.TRUNCATED)) & (rollout.lengths < max_new_tokens)
    return rollout.replace(status=np.where(cut, int(Status.PENDING), rollout.status))


def continued(
    model: Decoder,
    rollout: Any,
    sampling: SamplingConfig,
    rng: jax.Array,
    *,
    tokens: int | None = None,
    memory_fraction: float | None = None,
    layout: Layout = "train",
) -> Rollout:
    """Draws at most `tokens` more, by default all, of each PENDING response of a host's rollout.

    The rollout has room for `sampling.max_new_tokens`, its `staleness` becomes 0 at new tokens, and
    PENDING stays what was cut again. Rows are padded to 16, 64, 256, … so that few programs serve.
    """
    groups, members = np.nonzero(np.asarray(rollout.status) == int(Status.PENDING))
    if not len(groups):
        return rollout
    limit = sampling.max_new_tokens
    rows = LEAST_ROWS
    while rows < len(groups):
        rows *= ROW_STEP
    lengths = rollout.lengths[groups, members]
    starts = rollout.prompt_lengths[groups]
    width = rollout.prompt_tokens.shape[1] + rollout.tokens.shape[2]
    prompts, prompt_lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
    limits, streaks = np.zeros((2, rows, 1), np.int32)
    temperatures = None if rollout.temperatures is None else np.ones(rows, np.float32)
    for row, (p, g) in enumerate(zip(groups, members, strict=True)):
        start, n = starts[row], lengths[row]
        prompts[row, :start] = rollout.prompt_tokens[p, :start]
        prompts[row, start : start + n] = rollout.tokens[p, g, :n]
        prompt_lengths[row] = start + n
        limits[row] = min(tokens or limit, int(limit - n))
        streaks[row] = _streak(rollout.behaviour_logprobs[p, g, :n], sampling)
        if temperatures is not None:
            temperatures[row] = rollout.temperatures[p]
    piece = dataclasses.replace(sampling, group_size=1, max_new_tokens=tokens or limit)
    drawn = generate_within(
        memory_fraction,
        model,
        (prompts, prompt_lengths),
        piece,
        rng,
        max_new_tokens=limits,
        temperatures=temperatures,
        streaks=streaks,
        layout=layout,
    )
    return pending(_appended(rollout, groups, members, jax.device_get(drawn)), limit)


def _streak(logprobs: np.ndarray, sampling: SamplingConfig) -> int:
    """What `sampling.repetition_stop` counts at the end of a response."""
    streak = 0
    if sampling.repetition_stop is not None:
        for logprob in logprobs:
            streak = int(certain_streak(streak, logprob, sampling.repetition_stop.logprob))
    return streak


def _appended(rollout: Rollout, groups: np.ndarray, members: np.ndarray, drawn: Rollout) -> Rollout:
    """The rollout with the tokens drawn, one row for each (group, member), at the ends."""
    names = ("tokens", "mask", "behaviour_logprobs", "support")
    changes = {
        name: np.array(getattr(rollout, name))
        for name in (*names, "staleness", "lengths", "status")
        if getattr(rollout, name) is not None
    }
    for row, (p, g) in enumerate(zip(groups, members, strict=True)):
        old, new = rollout.lengths[p, g], drawn.lengths[row, 0]
        for name in names:
            if name in changes:
                changes[name][p, g, old : old + new] = getattr(drawn, name)[row, 0, :new]
        if "staleness" in changes:
            changes["staleness"][p, g, old : old + new] = 0
        changes["lengths"][p, g] = old + new
        changes["status"][p, g] = drawn.status[row, 0]
    return rollout.replace(**changes)
