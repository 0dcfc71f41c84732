"""slime's custom generation functions, unchanged, on mmrl's sampler.

    async def generate(args, sample, sampling_params) -> Sample

named by --custom-generate-function-path or `TrainConfig.custom_generate`. What they import of slime
is given where slime is not installed (`mmrl.slime.router`).

What is trained on is what was drawn: each token that the sample's loss mask keeps must be one that
the sampler drew there, with the sampler's log-probability. Where the function went on from an
edited context, tokens before it have the log-probabilities that the function kept.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from mmrl.data import Example, Sample, Status, prompt_tokens
from mmrl.environments import Episode, EpisodeLimits
from mmrl.environments.episode import timed
from mmrl.errors import UserError
from mmrl.rewards.runner import resolve
from mmrl.rewards.slime_functions import Arguments, provide_slime
from mmrl.rollout.continuous import Session
from mmrl.slime.router import ENDPOINT, MODULES, ROUTER, Endpoint, sampling_params
from mmrl.text import Tokenizer


async def generated(
    function: Callable[[Sample, dict[str, Any]], Awaitable[Any]],
    session: Session,
    example: Example,
    tokenizer: Tokenizer,
    limits: EpisodeLimits,
) -> Episode:
    """The episode that a function of slime's makes; what it raises makes it FAILED.

    A `UserError` is raised again.
    """
    prompt = prompt_tokens(example, tokenizer)
    episode = Episode(example, prompt=prompt)
    endpoint = Endpoint(session, tokenizer, len(prompt) + limits.tokens)
    token = ENDPOINT.set(endpoint)
    try:
        async with timed(episode, session, limits.seconds):
            sample = _sample(example, tokenizer, session.number)
            sample = await function(sample, sampling_params(session.sampling))
            _fill(episode, sample, endpoint, limits.tokens)
    finally:
        ENDPOINT.reset(token)
        session.close()
    return episode


def _sample(example: Example, tokenizer: Tokenizer, number: int) -> Sample:
    """The sample as slime's data give it: with the text of the prompt, its template applied."""
    prompt: Any = example.prompt
    if not isinstance(prompt, str):
        assert tokenizer.chat_template is not None
        prompt = tokenizer.chat_template.render(prompt, example.tools)
    metadata = dict(example.metadata)
    return Sample(index=number, prompt=prompt, label=example.label, metadata=metadata)


def _fill(episode: Episode, sample: Any, endpoint: Endpoint, longest: int) -> None:
    """The episode from the sample that the function returned. Raises ValueError for a wrong one."""
    if not isinstance(sample, Sample):
        raise UserError(
            f"a custom generation function must return one Sample, got {type(sample).__name__}: "
            "several samples of one prompt are not trained on"
        )
    length, start = sample.response_length, len(sample.tokens) - sample.response_length
    mask = [1] * length if sample.loss_mask is None else list(sample.loss_mask)
    if start < 1 or len(mask) != length:
        raise ValueError(
            f"{len(sample.tokens)} tokens, response_length {length} and {len(mask)} of loss_mask"
        )
    episode.prompt, episode.turns = list(sample.tokens[:start]), endpoint.turns
    pairs = zip(sample.tokens, endpoint.session.tokens, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    for i, (token, kept) in enumerate(zip(sample.tokens[start:], mask, strict=True)):
        own = endpoint.drawn[start + i] if start + i < common else _given(sample, i)
        if kept and own is None:
            raise ValueError(f"token {i} of the response is in the loss mask and was not drawn")
        episode.response.append(int(token))
        episode.mask.append(int(kept))
        episode.logprobs.append(own if kept and own is not None else 0.0)
    status = Status.COMPLETED if sample.status is Status.PENDING else sample.status
    episode.status = Status.TRUNCATED if length > longest else status
    for part in (episode.response, episode.mask, episode.logprobs):
        del part[longest:]
    if isinstance(sample.reward, int | float):
        episode.reward = float(sample.reward)
    episode.example = dataclasses.replace(episode.example, metadata=sample.metadata)
    fields = {field.name for field in dataclasses.fields(Sample)}
    episode.attributes = {k: v for k, v in vars(sample).items() if k not in fields}


def _given(sample: Sample, index: int) -> float | None:
    """The log-probability that the function kept, where the session has read over it since."""
    kept = sample.rollout_log_probs
    if kept is None or len(kept) != sample.response_length:
        return None
    return float(kept[index])


def find_generation(
    path: str, arguments: Arguments, tokenizer: Tokenizer
) -> Callable[[Sample, dict[str, Any]], Awaitable[Any]]:
    """The function at `path` with its `args`, once what it imports of slime is there.

    Raises `UserError` for a path that leads nowhere or to no coroutine function.
    """
    provide_slime(MODULES)
    function = resolve(path, "custom_generate")
    if not inspect.iscoroutinefunction(function):
        raise UserError(f"custom_generate {path!r} must be `async def generate(args, sample, …)`")
    own = dict(
        sglang_router_ip=ROUTER,
        sglang_router_port=0,
        tokenizer=tokenizer,
        partial_rollout=False,
        use_rollout_routing_replay=False,
        rollout_max_context_len=None,
        ci_test=False,
    )
    return functools.partial(function, Arguments(**(vars(arguments) | own)))
