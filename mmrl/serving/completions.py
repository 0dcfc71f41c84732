"""OpenAI's plain completions: text or tokens to go on with, and log-probabilities of both.

With `echo` and `logprobs` the prompt's own tokens are scored, as evaluation harnesses ask for:
lm-eval's `local-completions` sends echo, logprobs=1 and max_tokens=1 and drops the last token.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.rollout.sampling import SamplingConfig
from mmrl.serving import fields
from mmrl.serving.ask import FinishReason, Part, Reply, TokenScore
from mmrl.serving.engine import TOP_LOGPROBS, Emit, Engine
from mmrl.serving.fields import unsupported, wrong
from mmrl.serving.http import data_line
from mmrl.serving.names import mode_of_model
from mmrl.serving.openai_reply import error_json, usage
from mmrl.serving.openai_request import STOPS, refuse_what_is_not_there, sampling
from mmrl.serving.prompts import check_characters
from mmrl.text import Tokenizer


@dataclass(frozen=True)
class Completion:
    """P prompts to go on with, `choices` times each.

    `texts` are the prompts' as the client gave them, None for tokens; `new_tokens` may be 0.
    `listed` is the number of best tokens beside each token, None for no log-probabilities.
    """

    model: str
    mode: str
    prompts: list[list[int]]
    texts: list[str | None]
    sampling: SamplingConfig
    new_tokens: int
    echo: bool
    listed: int | None
    stop: tuple[str, ...]
    seed: int | None
    choices: int
    stream: bool
    usage_in_stream: bool

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.choices

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


async def parse_completion(
    body: Mapping[str, Any], headers: Mapping[str, str], engine: Engine
) -> Completion:
    """The body of POST /v1/completions. Raises `ApiError` naming the field."""
    model, mode = mode_of_model(body, headers, engine)
    refuse_what_is_not_there(body)
    if body.get("suffix"):
        raise unsupported("suffix", "the model writes from left to right")
    choices = fields.integer(body, "n", 1, 1, engine.limits.choices)
    if fields.integer(body, "best_of", choices, 1) != choices:
        raise unsupported("best_of", "ask for n choices and keep the best")
    new_tokens = fields.integer(body, "max_tokens", 16, 0)
    texts, prompts = await _prompts(body.get("prompt"), engine)
    return Completion(
        model=model,
        mode=mode,
        prompts=prompts,
        texts=texts,
        sampling=sampling(body, mode, engine, max(new_tokens, 1)),
        new_tokens=new_tokens,
        echo=fields.boolean(body, "echo"),
        listed=fields.integer(body, "logprobs", None, 0, TOP_LOGPROBS),
        stop=fields.strings(body, "stop", STOPS),
        seed=fields.integer(body, "seed", None, -(2**63)),
        choices=choices,
        stream=fields.boolean(body, "stream"),
        usage_in_stream=fields.boolean(fields.mapping(body, "stream_options"), "include_usage"),
    )


async def _prompts(value: Any, engine: Engine) -> tuple[list[str | None], list[list[int]]]:
    """(texts or None, tokens) of a text, a list of tokens, or a list of either."""
    prompts = value if isinstance(value, list) else [value]
    if isinstance(value, list) and prompts and all(isinstance(x, int) for x in prompts):
        prompts = [prompts]
    if not prompts or len(prompts) > engine.limits.sequences:
        raise wrong("prompt", f"1 to {engine.limits.sequences} prompts", value)
    texts: list[str | None] = []
    tokens: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            check_characters(len(prompt), engine.limits.prompt_tokens)
            texts.append(prompt)
            tokens.append(await engine.text_prompt(prompt))
        elif isinstance(prompt, list) and all(isinstance(x, int) for x in prompt):
            engine.check_tokens(prompt)
            texts.append(None)
            tokens.append(prompt)
        else:
            raise wrong("prompt", "a text, a list of token ids, or a list of either", prompt)
    return texts, tokens


async def complete(engine: Engine, asked: Completion, choice: int, emit: Emit) -> None:
    """One choice: the prompt as its first part if it is echoed, then what the model draws."""
    prompt = asked.prompts[choice // asked.choices]
    if asked.echo:
        text = asked.texts[choice // asked.choices]
        text = engine.tokenizer.decode(prompt) if text is None else text
        scores, following = await _prompt_scores(engine, asked, prompt)
        emit(Part(content=text, scores=scores))
        greedy = asked.sampling.temperature == 0 and not asked.stop
        if following is not None and asked.new_tokens == 1 and greedy:
            # What follows the prompt is known already.
            said = engine.tokenizer.decode([following.token])
            finish: FinishReason = "stop" if following.stops else "length"
            emit(Part(content=said, scores=(following,), tokens=1, finish=finish))
            return
    if not asked.new_tokens:
        emit(Part(finish="length"))
        return
    best = None if asked.listed is None else max(asked.listed, 1)
    settings: Any = dict(seed=asked.seed, choice=choice, stop=asked.stop, best=best)
    await engine.generate(prompt, asked.sampling, emit, **settings)


async def _prompt_scores(
    engine: Engine, asked: Completion, prompt: list[int]
) -> tuple[tuple[TokenScore, ...], TokenScore | None]:
    """Of the prompt's tokens, the first without a log-probability, and of what follows greedily."""
    if asked.listed is None:
        return (), None
    found = await engine.scorer.score(prompt, max(asked.listed, 1))
    tokens = [*prompt[1:], found.next_token]
    ends = found.next_token in asked.sampling.stop_ids
    scores = [
        TokenScore(token, logprob, tuple(best), stops=ends and place == len(prompt) - 1)
        for place, (token, logprob, best) in enumerate(zip(tokens, found.logprobs, found.best))
    ]
    return (TokenScore(prompt[0], math.nan), *scores[:-1]), scores[-1]


def completion_json(
    asked: Completion, identity: str, tokenizer: Tokenizer, replies: Sequence[Reply]
) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    choices = [
        _choice(asked, i, reply.content, reply.scores, reply.finish, tokenizer, 0)
        for i, reply in enumerate(replies)
    ]
    tokens = sum(reply.tokens for reply in replies)
    return _base(asked, identity) | {
        "choices": choices,
        "usage": usage(asked.prompt_tokens, tokens),
    }


class CompletionChunks:
    """The events of a stream."""

    encode = staticmethod(data_line)
    error_json = staticmethod(error_json)
    ping, last = ": ping\n\n", "data: [DONE]\n\n"

    def __init__(self, asked: Completion, identity: str, tokenizer: Tokenizer):
        self._asked, self._tokenizer = asked, tokenizer
        self._base = _base(asked, identity)
        self._offsets = [0] * asked.sequences
        self._tokens = 0

    def begin(self) -> list[dict[str, Any]]:
        return []

    def part(self, choice: int, part: Part) -> list[dict[str, Any]]:
        self._tokens += part.tokens
        if not (part.content or part.scores or part.finish):
            return []
        offset = self._offsets[choice]
        self._offsets[choice] += len(part.content)
        entry = _choice(
            self._asked, choice, part.content, part.scores, part.finish, self._tokenizer, offset
        )
        return [self._base | {"choices": [entry]}]

    def end(self) -> list[dict[str, Any]]:
        if not self._asked.usage_in_stream:
            return []
        counts = usage(self._asked.prompt_tokens, self._tokens)
        return [self._base | {"choices": [], "usage": counts}]


def _base(asked: Completion, identity: str) -> dict[str, Any]:
    created = int(time.time())
    return {
        "id": identity,
        "object": "text_completion",
        "created": created,
        "model": asked.model,
    }


def _choice(
    asked: Completion, index: int, text: str, scores, finish, tokenizer: Tokenizer, offset: int
) -> dict[str, Any]:
    logprobs = None
    if asked.listed is not None:
        logprobs = _logprobs(scores, asked.listed, tokenizer, offset)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(
    scores: Sequence[TokenScore], listed: int, tokenizer: Tokenizer, offset: int
) -> dict[str, Any]:
    """Lists of one entry a token. The first token of a prompt has no log-probability.

    Of two tokens with the same text the more probable one is listed.
    """
    found: dict[str, Any] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for score in scores:
        text = tokenizer.decode([score.token])
        first = math.isnan(score.logprob)
        top: dict[str, float] = {}
        for token, logprob in (*score.best[:listed], (score.token, score.logprob)):
            top.setdefault(tokenizer.decode([token]), logprob)
        found["tokens"].append(text)
        found["token_logprobs"].append(None if first else score.logprob)
        found["top_logprobs"].append(None if first else top)
        found["text_offset"].append(offset)
        offset += len(text)
    return found
