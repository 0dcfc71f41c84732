"""Rollouts on the host: rewards in, advantages, dynamic sampling, and what is logged of them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmrl.data import Sample, Status
from mmrl.environments import Episode, EpisodeConfig
from mmrl.processes import everywhere, exchange, own_rows, share
from mmrl.rewards.length_bias import length_correlation
from mmrl.rewards.runner import Reward, RewardResult, score
from mmrl.rewards.slime_functions import Filter, score_groups
from mmrl.rl.advantages import (
    batch_normalised,
    brevity_shaping,
    group_relative,
    informative,
    leave_one_out,
    overlong_shaping,
)
from mmrl.rl.metrics import token_mean
from mmrl.rollout import Rollout
from mmrl.rollout.modes import has_form, mode_name
from mmrl.text import Tokenizer
from mmrl.training.config import TrainConfig
from mmrl.training.endings import by_status, compared

ADVANTAGES: dict[str, Callable[..., jax.Array]] = {
    "group_relative": group_relative,
    "leave_one_out": leave_one_out,
    "batch_normalised": batch_normalised,
    "group_centred": functools.partial(group_relative, std=None),
    "group_batch_normalised": functools.partial(batch_normalised, baseline="group"),
}
DEFAULT = EpisodeConfig()
_SAMPLED = (
    "prompt_tokens", "prompt_lengths", "tokens", "lengths", "mask", "behaviour_logprobs", "status",
)  # fmt: skip


def samples_of(rollout: Rollout, tokenizer: Tokenizer) -> list[Sample]:
    """One `Sample` a response, group by group, of the prompts whose examples this process has.

    `rollout.metadata` holds the prompts' examples, or their episodes: all, or in a job of several
    processes those of this one's `share` and None for the others. What an episode's environment
    gave is the sample's `reward`; its `metadata` have the episode's `answer`, `turns`,
    `metrics` and `tools` beside the example's own.
    """
    own = share(len(rollout.metadata))
    host = own_rows({name: getattr(rollout, name) for name in _SAMPLED})
    samples = []
    for row, g in np.ndindex(host["lengths"].shape):
        p = own[row]
        record = rollout.metadata[p]
        episode = record[g] if isinstance(record, list) else None
        example = record if episode is None else episode.example
        length = int(host["lengths"][row, g])
        prompt = host["prompt_tokens"][row, : host["prompt_lengths"][row]]
        response = host["tokens"][row, g, :length]
        samples.append(
            Sample(
                group_index=p,
                index=p * host["lengths"].shape[1] + g,
                prompt=example.prompt,
                tokens=[*prompt.tolist(), *response.tolist()],
                response=tokenizer.decode(response),
                response_length=length,
                label=example.label,
                loss_mask=host["mask"][row, g, :length].astype(int).tolist(),
                rollout_log_probs=host["behaviour_logprobs"][row, g, :length].tolist(),
                status=Status(int(host["status"][row, g])),  # type: ignore[call-arg]
                metadata=example.metadata if episode is None else _metadata(episode),
                reward=None if episode is None else episode.reward,
            )
        )
        if episode is not None:
            noted = {"error": episode.error} if episode.error else None
            vars(samples[-1]).update(train_metadata=noted, **episode.attributes)
    return samples


def _metadata(episode: Episode) -> dict[str, Any]:
    names = ("answer", "turns", "metrics", "tools")
    return episode.example.metadata | {name: getattr(episode, name) for name in names}


@dataclass(frozen=True)
class _Judgement:
    """What the reward says of all responses, by all processes; arrays are [P, G]."""

    results: list[RewardResult]  # group by group
    values: np.ndarray
    solved: np.ndarray
    failed: np.ndarray  # where there is no reward
    removed: np.ndarray  # what the reward took out of the loss
    formed: np.ndarray  # what has its mode's form


def reward_rollout(
    rollout: Rollout, reward: Reward, config: TrainConfig
) -> tuple[Rollout, dict[str, Any]]:
    """Scores every response. A sample whose reward fails becomes FAILED and leaves the loss.

    Each process scores its own share; all learn the results. `config.episodes.statuses` has the
    last word about each ending.

    Returns the rollout with its rewards and with its own samples as metadata, group by group, and
    metrics: `reward/solved` (a component "solved", or else a reward of 1 and more), the mean of
    every component, `reward/failed` and `reward/length_correlation`; with modes also
    `mode_metrics`.
    """
    samples = samples_of(rollout, config.tokenizer)
    status, lengths = everywhere((rollout.status, rollout.lengths))
    judgement = _judge(samples, reward, config, lengths.shape)
    metrics = _reward_metrics(judgement, lengths, config)
    status = np.where(judgement.failed, int(Status.FAILED), status)
    values = np.where(judgement.failed, 0, _shaped(judgement, lengths, config))
    values, trained = by_status(values, status, config.episodes)
    _note(samples, judgement, values, trained)
    rows, size = lengths.shape
    groups: list[list[Sample] | None] = [None] * rows
    for row, p in enumerate(share(rows)):
        groups[p] = samples[row * size : (row + 1) * size]
    rollout = rollout.replace(
        reward=values,
        status=status,
        lengths=lengths,
        mask=rollout.mask * (trained & ~judgement.removed)[..., None],
        metadata=tuple(groups),
    )
    return rollout, metrics


def _judge(
    samples: list[Sample], reward: Reward, config: TrainConfig, shape: tuple[int, int]
) -> _Judgement:
    """Asks the reward about this process's samples, and exchanges what it says."""
    judge: Callable[..., list[RewardResult]] = score
    if config.group_reward:
        judge = functools.partial(score_groups, group_size=shape[1], key=config.reward_key)
    scored = judge(
        samples,
        reward,
        timeout_seconds=config.reward_timeout_seconds,
        max_workers=config.reward_workers,
    )
    own = [
        (r.value, r.components, r.error, sample.remove_sample, _has_form(sample, config))
        for r, sample in zip(scored, samples, strict=True)
    ]
    judged = [fields for part in exchange(own) for fields in part]
    results = [RewardResult(*fields[:3]) for fields in judged]
    solved = [r.components.get("solved", float(r.value >= 1)) for r in results]
    failed = [r.error is not None for r in results]
    if any(failed):
        first = next(r.error for r in results if r.error)
        logging.warning("%d of %d rewards failed, the first: %s", sum(failed), len(failed), first)
    return _Judgement(
        results,
        values=np.reshape(np.asarray([r.value for r in results], np.float32), shape),
        solved=np.reshape(solved, shape),
        failed=np.reshape(failed, shape),
        removed=np.reshape([fields[3] for fields in judged], shape),
        formed=np.reshape([fields[4] for fields in judged], shape),
    )


def _reward_metrics(
    judgement: _Judgement, lengths: np.ndarray, config: TrainConfig
) -> dict[str, float]:
    metrics = {
        "reward/solved": float(np.mean(judgement.solved)),
        "reward/failed": float(np.mean(judgement.failed)),
        "reward/length_correlation": length_correlation(judgement.values, lengths),
    }
    components = [r.components for r in judgement.results]
    for name in sorted({name for found in components for name in found} - {"solved", "reward"}):
        metrics[f"reward/{name}"] = float(np.mean([found.get(name, 0.0) for found in components]))
    return metrics | (mode_metrics(config, lengths, judgement.solved) if config.modes else {})


def _shaped(judgement: _Judgement, lengths: np.ndarray, config: TrainConfig) -> np.ndarray:
    """The rewards [P, G] with what the config takes off for length and for a mode's form."""
    values = judgement.values
    if config.overlong_buffer:
        limit, buffer = config.response_length, config.overlong_buffer
        shaping = overlong_shaping(jnp.asarray(lengths), max_length=limit, buffer=buffer)
        values = values + np.asarray(shaping)
    if config.modes:
        modes = [config.modes[mode_name(row, config.modes)] for row in range(len(lengths))]
        bounds = np.asarray([[mode.max_new_tokens] for mode in modes])
        weights = np.asarray([[mode.length_penalty] for mode in modes])
        values = np.where(judgement.formed, values, np.minimum(values, 0))
        values = np.asarray(brevity_shaping(values, lengths, max_lengths=bounds, weights=weights))
    return values


def _note(
    samples: list[Sample], judgement: _Judgement, values: np.ndarray, trained: np.ndarray
) -> None:
    """Writes into this process's samples what was found of them; `values`, `trained` [P, G]."""
    for sample in samples:
        assert sample.index is not None
        place = divmod(sample.index, values.shape[1])
        result, failed = judgement.results[sample.index], judgement.failed[place]
        found = {"components": result.components, "error": result.error}
        noted = {name: value for name, value in found.items() if value}
        sample.reward = float(values[place])
        sample.train_metadata = (sample.train_metadata or {}) | noted
        sample.remove_sample = sample.remove_sample or not trained[place]
        sample.solved = bool(not failed and judgement.solved[place] >= 1)
        sample.status = Status.FAILED if failed else sample.status


def with_samples(rollout: Rollout, tokenizer: Tokenizer) -> Rollout:
    """A judged rollout of one process whose metadata are examples, with samples in their place."""
    samples = samples_of(rollout, tokenizer)
    size = rollout.lengths.shape[1]
    for sample, reward in zip(samples, np.asarray(rollout.reward).ravel(), strict=True):
        sample.reward = float(reward)
    groups = [samples[start : start + size] for start in range(0, len(samples), size)]
    return rollout.replace(metadata=tuple(groups))


def outcomes(rollout: Rollout) -> list[tuple[str, list[float]]]:
    """Of every prompt that has a "prompt_id", which of its responses are right, failures aside."""
    own = [
        (group[0].metadata["prompt_id"], [float(s.solved) for s in counted])
        for group in rollout.metadata
        if group is not None
        and "prompt_id" in group[0].metadata
        and (counted := [s for s in group if s.status is not Status.FAILED])
    ]
    return [(name, solved) for part in exchange(own) for name, solved in part]


def _has_form(sample: Sample, config: TrainConfig) -> bool:
    return not config.modes or has_form(sample.response, config.modes[sample.metadata["mode"]])


def mode_metrics(config: TrainConfig, lengths: np.ndarray, solved: np.ndarray) -> dict[str, float]:
    """`mode/NAME/length_mean` and `mode/NAME/solved` of responses [P, G] that took turns."""
    names = np.asarray([mode_name(row, config.modes) for row in range(len(lengths))])
    return {
        f"mode/{name}/{metric}": float(values[names == name].mean())
        for name in config.modes
        if (names == name).any()
        for metric, values in (("length_mean", lengths), ("solved", solved))
    }


def with_advantages(rollout: Rollout, config: TrainConfig) -> Rollout:
    """Fills in the advantages; samples that are left out count in no group's mean."""
    valid = compared(rollout.status, config.episodes)
    advantages = ADVANTAGES[config.advantage](rollout.reward, valid)
    return rollout.replace(advantages=np.asarray(advantages))


def informative_groups(rollout: Rollout, episodes: EpisodeConfig = DEFAULT) -> np.ndarray:
    """Which groups have rewards that differ, [P] bool; only these move the policy."""
    return np.asarray(informative(rollout.reward, compared(rollout.status, episodes)))


def filtered(
    rollout: Rollout, keep: Filter | None, episodes: EpisodeConfig = DEFAULT
) -> tuple[Rollout, np.ndarray]:
    """The rollout and which of its groups are worth training on, [P] bool.

    The informative ones; or those that a filter of the user's keeps, and then the others leave the
    loss. Each process asks the filter about its own groups.
    """
    if keep is None:
        return rollout, informative_groups(rollout, episodes)
    own = [bool(keep(group)) for group in rollout.metadata if group is not None]
    kept = np.asarray([answer for part in exchange(own) for answer in part])
    return rollout.replace(mask=rollout.mask * kept[:, None, None]), kept


def keep_informative(
    parts: list[Rollout], prompts: int, chosen: list[np.ndarray] | None = None
) -> Rollout:
    """Of several rollouts, the first informative groups, filled up with others to `prompts`.

    `chosen` says of each rollout which groups come first, where it is not the informative ones.
    Dynamic sampling, DAPO (arXiv 2503.14476) section 3.2.
    """
    if len(parts) == 1:
        return parts[0]
    differ = np.concatenate(chosen or [informative_groups(part) for part in parts])
    order = np.argsort(~differ, kind="stable")[:prompts]
    whole = _choose([part.arrays() for part in parts], order)
    on_host = {
        name: np.concatenate([np.asarray(getattr(part, name)) for part in parts])[order]
        for name in ("lengths", "status", "reward", "advantages")
    }
    examples = [example for part in parts for example in part.metadata]
    return whole.replace(metadata=tuple(examples[i] for i in order), **on_host)


@jax.jit
def _choose(parts: list[Rollout], order: jax.Array) -> Rollout:
    """These prompts of all parts. One program, for each may move rows between the devices."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs)[order], *parts)


@jax.jit
def _perplexity(logprobs: jax.Array, mask: jax.Array) -> jax.Array:
    """exp of the mean negative log-probability of the tokens that `mask` keeps."""
    return jnp.exp(-token_mean(logprobs, mask))


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over all samples, as `metrics.jsonl` names them."""
    return {
        "reward/mean": float(rollout.reward.mean()),
        "reward/std": float(rollout.reward.std()),
        "response/length_mean": float(rollout.lengths.mean()),
        "response/length_p99": float(np.percentile(rollout.lengths, 99)),
        "response/perplexity": float(_perplexity(rollout.behaviour_logprobs, rollout.mask)),
        "response/truncated": float(np.mean(rollout.status == int(Status.TRUNCATED))),
        "response/repetition": float(np.mean(rollout.status == int(Status.REPETITION))),
    }


def rollout_rows(rollout: Rollout, step: int, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """This process's samples as `rollouts/STEP.jsonl` holds them (format: `mmrl.report.metrics`).

    Of a rollout with rewards and advantages.
    """
    for p, samples in enumerate(rollout.metadata):
        for g, sample in enumerate(samples or ()):
            status = Status(int(rollout.status[p, g]))  # type: ignore[call-arg]
            response = sample.tokens[len(sample.tokens) - sample.response_length :]
            yield {
                "step": step,
                "group": p,
                "prompt": sample.prompt,
                "label": sample.label,
                "response_tokens": [tokenizer.decode([token]) for token in response],
                "logprobs": sample.rollout_log_probs,
                "mask": sample.loss_mask,
                "reward": float(rollout.reward[p, g]),
                "advantage": float(rollout.advantages[p, g]),
                "status": status.value,
                **_optional_fields(sample, status),
            }


def _optional_fields(sample: Sample, status: Status) -> dict[str, Any]:
    noted = sample.train_metadata or {}
    fields = {
        "tools": sample.metadata.get("tools"),
        "components": noted.get("components"),
        "metrics": sample.metadata.get("metrics"),
        "mode": sample.metadata.get("mode"),
        "error": noted.get("error"),
        "in_loss": False if sample.remove_sample or status is Status.FAILED else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
