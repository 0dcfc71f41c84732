"""Responses to problems, in batches of one shape, and the rows that record them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmrl.data import prompt_tokens
from mmrl.errors import user_mistakes
from mmrl.evaluation.problems import Problem
from mmrl.models import Decoder
from mmrl.rewards.runner import Reward, RewardResult, score
from mmrl.rollout import Rollout, SamplingConfig, generate
from mmrl.rollout.sampler import pad_prompts
from mmrl.text import Tokenizer
from mmrl.training.config import TrainConfig
from mmrl.training.episodes import sample_episodes
from mmrl.training.rollouts import samples_of

Row = dict[str, Any]


def judged_responses(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    reward: Reward,
    *,
    batch: int,
    key: jax.Array,
    episodes: TrainConfig | None = None,
) -> Iterator[list[Row]]:
    """Yields the rows of `batch` problems after the other, `sampling.group_size` rows a problem.

    With `episodes`, the config of a run, they are episodes in its environment. A problem's
    responses do not depend on the batch it sits in.

    A row has task, problem, sample, prompt, label, response, tokens (of the response), status,
    reward, solved (0 or 1), components (of the reward) and error (None, or why it has no reward,
    which then is 0).
    """
    batch, group = min(batch, len(problems)), sampling.group_size
    draw = _single_responses(model, tokenizer, problems, sampling, batch, key)
    if episodes is not None:
        draw = _episodes(model, problems, sampling, key, episodes)
    for start in range(0, len(problems), batch):
        rows = list(range(start, min(start + batch, len(problems))))
        samples = samples_of(draw(rows), tokenizer)[: len(rows) * group]
        results = score(samples, reward)
        yield [
            _row(problems[rows[i // group]], sample, i % group, result)
            for i, (sample, result) in enumerate(zip(samples, results, strict=True))
        ]


def _single_responses(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    batch: int,
    key: jax.Array,
) -> Callable[[list[int]], Rollout]:
    """Responses to the problems of these numbers.

    One program serves all batches: prompts are padded to the longest, and the last batch is filled
    up with its first problem again.
    """
    with user_mistakes():
        tokens, lengths = pad_prompts([prompt_tokens(p.example, tokenizer) for p in problems])

    def draw(rows: list[int]) -> Rollout:
        filled = rows + rows[:1] * (batch - len(rows))
        seeds = jnp.asarray(filled, jnp.int32)
        rollout = generate(model, (tokens[filled], lengths[filled]), sampling, key, seeds=seeds)
        return rollout.replace(metadata=tuple(problems[row].example for row in filled))

    return draw


def _episodes(
    model: Decoder,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    key: jax.Array,
    config: TrainConfig,
) -> Callable[[list[int]], Rollout]:
    """Episodes of the problems of these numbers."""

    def draw(rows: list[int]) -> Rollout:
        examples = [problems[row].example for row in rows]
        drawn = sample_episodes(
            model, examples, config, sampling, key, first=rows[0], layout="train"
        )
        return drawn[0]

    return draw


def _row(problem: Problem, sample: Any, number: int, result: RewardResult) -> Row:
    solved = result.components.get("solved", result.value) >= 1
    return {
        "task": problem.task,
        "problem": problem.index,
        "sample": number,
        "prompt": problem.example.prompt,
        "label": problem.example.label,
        "response": sample.response,
        "tokens": sample.response_length,
        "status": sample.status.value,
        "reward": result.value,
        "solved": float(solved and result.error is None),
        "components": result.components,
        "error": result.error,
    }
