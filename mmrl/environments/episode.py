"""Episodes, token in and token out: one growing sequence a conversation with an environment.

    prompt | response 1 | what came back | response 2 | …
    mask:        1               0              1

What the model emitted is never decoded and encoded again, and history is never rendered again: the
ids that are trained on are the ids that were sampled.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import logging

from mmrl.data import Example, Status, prompt_tokens
from mmrl.environments.config import EpisodeLimits
from mmrl.environments.environment import Environment, Step
from mmrl.errors import UserError
from mmrl.rollout import Rollout, SamplingConfig
from mmrl.rollout.continuous import Session
from mmrl.rollout.sampler import pad_prompts
from mmrl.rollout.sampling import support_size
from mmrl.text import Tokenizer
from mmrl.text.turns import encode_next_turn


@dataclass
class Episode:
    """What was said, T tokens after the prompt.

    tokens      the prompt's ids;  response  [T] ids of all that followed
    mask        [T], 1 where the model drew the token
    logprobs    [T] of the distribution it was drawn from, 0 elsewhere
    support     [T, K] as in `Rollout`, None where nothing truncates
    turns       responses that the model gave
    reward      the sum of the environment's, `metrics` likewise
    answer      the environment's last, for a reward function to judge
    tools       that it began with
    error       why it FAILED
    attributes  further ones of its `Sample`, which its reward reads
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
    answer: Any = None
    tools: list[dict[str, Any]] | None = None
    error: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def read(self, tokens: Sequence[int]) -> None:
        """What did not come from the model."""
        self.response += tokens
        self.mask += [0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    def add(self, step: Step) -> None:
        self.reward += step.reward
        if step.answer is not None:
            self.answer = step.answer
        for name, value in step.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value


async def play(
    session: Session,
    environment: Environment,
    example: Example,
    tokenizer: Tokenizer,
    limits: EpisodeLimits,
) -> Episode:
    """One episode from its reset to its end, once the session has a row.

    What the environment raises makes it FAILED, but for a `UserError`, which is raised again.
    """
    episode = Episode(example)
    try:
        async with timed(episode, session, limits.seconds):
            episode.status = await _turns(episode, session, environment, tokenizer, limits)
    finally:
        try:
            await environment.close()
        except Exception as error:
            logging.warning("An environment did not close: %s: %s", type(error).__name__, error)
        session.close()
    return episode


@contextlib.asynccontextmanager
async def timed(episode: Episode, session: Session, seconds: float) -> AsyncIterator[None]:
    """What happens within, once the session has a row, may take `seconds`.

    The episode ends by TIME_LIMIT after them and is FAILED by what is raised, but for a
    `UserError`, which is raised again.
    """
    try:
        await session.begin()
        async with asyncio.timeout(seconds) as clock:
            yield
    except TimeoutError as error:
        if clock.expired():
            episode.status = Status.TIME_LIMIT
        else:
            episode.status, episode.error = Status.FAILED, f"TimeoutError: {error}"
    except UserError:
        raise
    except Exception as error:  # an environment may raise anything
        episode.status, episode.error = Status.FAILED, f"{type(error).__name__}: {error}"


async def _turns(
    episode: Episode,
    session: Session,
    environment: Environment,
    tokenizer: Tokenizer,
    limits: EpisodeLimits,
) -> Status:
    start = await environment.reset(episode.example)
    shown = dataclasses.replace(episode.example, prompt=start.prompt, tools=start.tools)
    episode.prompt, episode.tools = prompt_tokens(shown, tokenizer), start.tools
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
        if turn.ending == "repetition":
            return Status.REPETITION
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
    groups: Sequence[Sequence[Episode]],
    sampling: SamplingConfig,
    prompt_length: int,
    length: int,
) -> Rollout:
    """P groups of G episodes of one prompt each as a `Rollout`, responses padded to `length`.

    Its arrays are on the host. The episodes' rewards are the rollout's, advantages are 0, and the
    metadata of a prompt are its episodes. Raises ValueError for a group whose episodes begin
    differently, for an episode that is too long, and `pad_prompts`'s.
    """
    shape = (len(groups), sampling.group_size, length)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    logprobs, lengths = np.zeros(shape, np.float32), np.zeros(shape[:2], np.int32)
    status, reward = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], np.float32)
    size = support_size(sampling)
    support = np.full((*shape, size), -1, np.int32) if size else None
    for p, group in enumerate(groups):
        for g, episode in enumerate(group):
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
    begun = [_beginning(group, p) for p, group in enumerate(groups)]
    prompts, prompt_lengths = pad_prompts(begun, prompt_length)
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
    return Rollout(**arrays, metadata=tuple(map(list, groups)))


def _beginning(group: Sequence[Episode], number: int) -> list[int]:
    """The prompt of a group; one token that stands for nothing where all failed before it."""
    prompts = [episode.prompt for episode in group if episode.prompt]
    for prompt in prompts:
        if prompt != prompts[0]:
            raise ValueError(
                f"the episodes of group {number} begin with different prompts: what an environment "
                "shows at its reset may depend on the example alone"
            )
    return prompts[0] if prompts else [0]
