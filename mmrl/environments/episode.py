"""Episodes, token in and token out: one growing sequence a conversation with an environment.

    prompt | response 1 | what came back | response 2 | …
    mask:        1               0              1

What the model emitted is never decoded and encoded again, and history is never rendered again: the
ids that are trained on are the ids that were sampled.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from mmrl.data import Example, Status, prompt_tokens
from mmrl.environments.environment import Environment, Step
from mmrl.rollout import Rollout, SamplingConfig
from mmrl.rollout.continuous import ContinuousBatch, Session
from mmrl.rollout.sampler import pad_prompts
from mmrl.text import Tokenizer
from mmrl.text.turns import encode_next_turn


@dataclass(frozen=True)
class EpisodeLimits:
    """Where an episode ends unasked, each with a `Status` of its own.

    `turns` responses (TURN_LIMIT), `turn_tokens` in one of them (TURN_TOKEN_LIMIT), `tokens` after
    the prompt (TRUNCATED), `tool_seconds` of one step of the environment (TOOL_TIME_LIMIT),
    `seconds` in all (TIME_LIMIT).
    """

    turns: int = 16
    turn_tokens: int = 1024
    tokens: int = 8192
    tool_seconds: float = 60.0
    seconds: float = 600.0

    def __post_init__(self):
        for limit in dataclasses.fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"{limit.name} must be positive: {getattr(self, limit.name)}")


@dataclass
class Episode:
    """What was said, T tokens after the prompt.

    tokens      the prompt's ids;  response  [T] ids of all that followed
    mask        [T], 1 where the model drew the token
    logprobs    [T] of the distribution it was drawn from, 0 elsewhere
    support     [T, K] as in `Rollout`, None where nothing truncates
    turns       responses that the model gave
    reward      the sum of the environment's, `metrics` likewise
    error       why it FAILED
    """

    example: Example
    prompt: list[int] = field(default_factory=list)
    response: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    supports: list[np.ndarray] = field(default_factory=list)
    status: Status = Status.PENDING
    turns: int = 0
    reward: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def read(self, tokens: Sequence[int]) -> None:
        """What did not come from the model."""
        self.response += tokens
        self.mask += [0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    def add(self, step: Step) -> None:
        self.reward += step.reward
        for name, value in step.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value


async def play(
    batch: ContinuousBatch,
    environment: Environment,
    example: Example,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    limits: EpisodeLimits,
    key: jax.Array,
) -> Episode:
    """One episode from its reset to its end; what the environment raises makes it FAILED."""
    episode = Episode(example)
    sampling = dataclasses.replace(sampling, stop_ids=sampling.stop_ids or tokenizer.stop_ids)
    session = batch.open(key, sampling)
    try:
        async with asyncio.timeout(limits.seconds) as clock:
            episode.status = await _turns(episode, session, environment, tokenizer, limits)
    except TimeoutError as error:
        if clock.expired():
            episode.status = Status.TIME_LIMIT
        else:
            episode.status, episode.error = Status.FAILED, f"TimeoutError: {error}"
    except Exception as error:  # an environment may raise anything
        episode.status, episode.error = Status.FAILED, f"{type(error).__name__}: {error}"
    finally:
        session.close()
        await environment.close()
    return episode


async def _turns(
    episode: Episode,
    session: Session,
    environment: Environment,
    tokenizer: Tokenizer,
    limits: EpisodeLimits,
) -> Status:
    start = await environment.reset(episode.example)
    shown = dataclasses.replace(episode.example, prompt=start.prompt, tools=start.tools)
    episode.prompt = prompt_tokens(shown, tokenizer)
    new: list[int] = episode.prompt
    while True:
        room = limits.tokens - len(episode.response)
        turn = await session.generate(new, max_new_tokens=min(limits.turn_tokens, room))
        episode.response += turn.tokens
        episode.mask += [1] * len(turn.tokens)
        episode.logprobs += turn.logprobs
        if turn.support is not None:
            episode.supports.append(turn.support)
        episode.turns += 1
        if turn.ending == "context" or (turn.ending == "length" and room <= limits.turn_tokens):
            return Status.TRUNCATED
        if turn.ending == "length":
            return Status.TURN_TOKEN_LIMIT
        text = tokenizer.decode(turn.tokens)
        try:
            step = await asyncio.wait_for(environment.step(text), limits.tool_seconds)
        except TimeoutError:
            return Status.TOOL_TIME_LIMIT
        episode.add(step)
        if step.done:
            return Status.COMPLETED
        if episode.turns >= limits.turns:
            return Status.TURN_LIMIT
        new = _encode(step, tokenizer, start.tools, turn.tokens[-1])
        if len(episode.response) + len(new) >= limits.tokens:
            return Status.TRUNCATED
        episode.read(new)


def _encode(step: Step, tokenizer: Tokenizer, tools: Any, last_id: int) -> list[int]:
    if isinstance(step.messages, str):
        return tokenizer.encode(step.messages)
    return encode_next_turn(tokenizer, step.messages, tools, last_id=last_id)


def episodes_rollout(
    groups: Sequence[Sequence[Episode]], prompt_length: int, length: int
) -> Rollout:
    """P groups of G episodes of one prompt each as a `Rollout`, responses padded to `length`.

    The episodes' rewards are the rollout's; advantages are 0. Raises ValueError for a group whose
    episodes begin differently, for a prompt or an episode that is too long, and `pad_prompts`'s.
    """
    shape = (len(groups), len(groups[0]), length)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    logprobs, lengths = np.zeros(shape, np.float32), np.zeros(shape[:2], np.int32)
    status, reward = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], np.float32)
    sizes = [s.shape[1] for group in groups for e in group for s in e.supports]
    support = np.full((*shape, max(sizes)), -1, np.int32) if sizes else None
    for p, group in enumerate(groups):
        for g, episode in enumerate(group):
            if episode.prompt != group[0].prompt:
                raise ValueError(f"episodes 0 and {g} of group {p} begin with different prompts")
            n = len(episode.response)
            if n > length:
                raise ValueError(f"episode {g} of group {p} has {n} tokens, more than {length}")
            lengths[p, g], status[p, g], reward[p, g] = n, int(episode.status), episode.reward
            tokens[p, g, :n], mask[p, g, :n] = episode.response, episode.mask
            logprobs[p, g, :n] = episode.logprobs
            if support is not None and episode.supports:
                drawn = np.concatenate(episode.supports)
                places = np.flatnonzero(episode.mask)
                support[p, g, places, : drawn.shape[1]] = drawn
    prompts, prompt_lengths = pad_prompts([group[0].prompt for group in groups], prompt_length)
    arrays: dict[str, Any] = dict(
        prompt_tokens=prompts,
        prompt_lengths=prompt_lengths,
        tokens=tokens,
        lengths=lengths,
        mask=mask,
        behaviour_logprobs=logprobs,
        support=support,
        status=status,
        reward=reward,
        advantages=np.zeros_like(reward),
    )
    return Rollout(**arrays, metadata=tuple(group[0].example for group in groups))
