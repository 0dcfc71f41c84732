"""Responses to problems, in batches of one shape, and the rows that record them."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmrl.data import prompt_tokens
from mmrl.errors import user_mistakes
from mmrl.evaluation.problems import Problem
from mmrl.models import Decoder
from mmrl.rewards.runner import Reward, RewardResult, score
from mmrl.rollout import SamplingConfig, generate
from mmrl.rollout.sampler import pad_prompts
from mmrl.text import Tokenizer
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
) -> Iterator[list[Row]]:
    """Yields the rows of `batch` problems after the other, `sampling.group_size` rows a problem.

    One program serves all batches: prompts are padded to the longest, and the last batch is filled
    up with its first problem again. A problem's responses do not depend on the batch it sits in.

    A row has task, problem, sample, prompt, label, response, tokens (of the response), status,
    reward, solved (0 or 1), components (of the reward) and error (None, or why it has no reward,
    which then is 0).
    """
    with user_mistakes():
        tokens, lengths = pad_prompts([prompt_tokens(p.example, tokenizer) for p in problems])
    batch, group = min(batch, len(problems)), sampling.group_size
    for start in range(0, len(problems), batch):
        rows = list(range(start, min(start + batch, len(problems))))
        filled = rows + rows[:1] * (batch - len(rows))
        seeds = jnp.asarray(filled, jnp.int32)
        rollout = generate(model, (tokens[filled], lengths[filled]), sampling, key, seeds=seeds)
        examples = tuple(problems[row].example for row in filled)
        samples = samples_of(rollout.replace(metadata=examples), tokenizer)
        samples = samples[: len(rows) * group]
        results = score(samples, reward)
        yield [
            _row(problems[rows[i // group]], sample, i % group, result)
            for i, (sample, result) in enumerate(zip(samples, results, strict=True))
        ]


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
