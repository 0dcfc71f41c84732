"""Rollouts on the host: rewards in, advantages, dynamic sampling, and what is logged of them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmrl.data import Example, Sample, Status
from mmrl.rewards.runner import Reward, score
from mmrl.rl.advantages import (
    batch_normalised,
    group_relative,
    informative,
    leave_one_out,
    overlong_shaping,
)
from mmrl.rollout import Rollout
from mmrl.text import Tokenizer
from mmrl.training.config import TrainConfig

ADVANTAGES = {
    "group_relative": group_relative,
    "leave_one_out": leave_one_out,
    "batch_normalised": batch_normalised,
}


def samples_of(rollout: Rollout, tokenizer: Tokenizer) -> list[Sample]:
    """One `Sample` a response, group by group; `rollout.metadata` holds the prompts' examples."""
    host = jax.device_get(rollout.arrays())
    samples = []
    for index, (p, g) in enumerate(np.ndindex(host.lengths.shape)):
        example: Example = rollout.metadata[p]
        length = int(host.lengths[p, g])
        prompt = host.prompt_tokens[p, : host.prompt_lengths[p]]
        response = host.tokens[p, g, :length]
        samples.append(
            Sample(
                group_index=p,
                index=index,
                prompt=example.prompt,
                tokens=[*prompt.tolist(), *response.tolist()],
                response=tokenizer.decode(response),
                response_length=length,
                label=example.label,
                loss_mask=host.mask[p, g, :length].astype(int).tolist(),
                rollout_log_probs=host.behaviour_logprobs[p, g, :length].tolist(),
                status=Status(int(host.status[p, g])),  # type: ignore[call-arg]
                metadata=example.metadata,
            )
        )
    return samples


def reward_rollout(
    rollout: Rollout, reward: Reward, config: TrainConfig
) -> tuple[Rollout, dict[str, Any]]:
    """Scores every response. A sample whose reward fails becomes FAILED and leaves the loss.

    Returns the rollout with its rewards, and metrics: `reward/solved` (a component "solved", or
    else a reward of 1 and more), the mean of every component, and `reward/failed`.
    """
    samples = samples_of(rollout, config.tokenizer)
    results = score(
        samples,
        reward,
        timeout_seconds=config.reward_timeout_seconds,
        max_workers=config.reward_workers,
    )
    shape = rollout.lengths.shape
    failed = np.asarray([r.error is not None for r in results]).reshape(shape)
    values = np.asarray([r.value for r in results], np.float32).reshape(shape)
    solved = [r.components.get("solved", float(r.value >= 1)) for r in results]
    metrics = {"reward/solved": float(np.mean(solved)), "reward/failed": float(failed.mean())}
    for name in sorted({name for r in results for name in r.components} - {"solved", "reward"}):
        metrics[f"reward/{name}"] = float(np.mean([r.components.get(name, 0.0) for r in results]))
    if failed.any():
        first = next(r.error for r in results if r.error)
        logging.warning("%d of %d rewards failed, the first: %s", failed.sum(), failed.size, first)
    if config.overlong_buffer:
        limit, buffer = config.sampling.max_new_tokens, config.overlong_buffer
        values = values + np.asarray(
            overlong_shaping(rollout.lengths, max_length=limit, buffer=buffer)
        )
    rollout = rollout.replace(
        reward=jnp.asarray(np.where(failed, 0, values)),
        status=jnp.where(failed, int(Status.FAILED), rollout.status),
        mask=rollout.mask * ~failed[..., None],
    )
    return rollout, metrics


def with_advantages(rollout: Rollout, config: TrainConfig) -> Rollout:
    """Fills in the advantages; samples whose reward failed count in no group's mean."""
    valid = rollout.status != int(Status.FAILED)
    return rollout.replace(advantages=ADVANTAGES[config.advantage](rollout.reward, valid))


def informative_groups(rollout: Rollout) -> np.ndarray:
    """Which groups have rewards that differ, [P] bool; only these move the policy."""
    valid = rollout.status != int(Status.FAILED)
    return np.asarray(informative(rollout.reward, valid))


def keep_informative(parts: list[Rollout], prompts: int) -> Rollout:
    """Of several rollouts, the first informative groups, filled up with others to `prompts`.

    Dynamic sampling, DAPO (arXiv 2503.14476) section 3.2.
    """
    if len(parts) == 1:
        return parts[0]
    differ = np.concatenate([informative_groups(part) for part in parts])
    order = np.argsort(~differ, kind="stable")[:prompts]
    arrays = [part.arrays() for part in parts]
    whole = jax.tree.map(lambda *xs: jnp.concatenate(xs)[order], *arrays)
    examples = [example for part in parts for example in part.metadata]
    return whole.replace(metadata=tuple(examples[i] for i in order))


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over all samples, as `metrics.jsonl` names them."""
    host = jax.device_get(rollout.arrays())
    return {
        "reward/mean": float(host.reward.mean()),
        "reward/std": float(host.reward.std()),
        "response/length_mean": float(host.lengths.mean()),
        "response/truncated": float((host.status == int(Status.TRUNCATED)).mean()),
    }


def rollout_rows(rollout: Rollout, step: int, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The samples as `rollouts/STEP.jsonl` holds them (format: `mmrl.report.metrics`)."""
    host = jax.device_get(rollout.arrays())
    for sample in samples_of(rollout, tokenizer):
        p, g = divmod(sample.index, host.lengths.shape[1])
        response = sample.tokens[len(sample.tokens) - sample.response_length :]
        yield {
            "step": step,
            "group": p,
            "prompt": sample.prompt,
            "label": sample.label,
            "response_tokens": [tokenizer.decode([token]) for token in response],
            "logprobs": sample.rollout_log_probs,
            "mask": sample.loss_mask,
            "reward": float(host.reward[p, g]),
            "advantage": float(host.advantages[p, g]),
            "status": sample.status.value,
        }
