"""The model behind the endpoints: one batch that all requests share, and one scorer of prompts."""

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
from absl import logging

from mmrl.models import Decoder
from mmrl.rollout.continuous import Turn
from mmrl.rollout.fixed_sizes import FixedSizes
from mmrl.rollout.modes import Mode
from mmrl.rollout.sampling import SamplingConfig
from mmrl.rollout.scoring import PromptScorer
from mmrl.serving.ask import Ask, Call, FinishReason, Part, TokenScore, new_id
from mmrl.serving.limits import ApiError, Limits
from mmrl.serving.prompts import Prompt, chat_prompt, text_prompt, too_long
from mmrl.serving.responses import ResponseReader, StopFinder
from mmrl.text import StreamDecoder, Tokenizer

T = TypeVar("T")
Emit = Callable[[Part], None]

STEPS = 4  # tokens a row draws before new requests are looked at and readers are served
PIECES = ((1, 16), (8, 16), (1, 128), (4, 128), (1, 512))  # of prompts, read between the steps
SUPPORT = 128  # the largest top_k, and the nucleus of top_p
TOP_LOGPROBS = 20  # the most that are listed beside a token
COLDEST = 1e-3  # a temperature below is greedy: logits divided by less overflow
LEAST_TOP_P = 1e-6  # of which the most probable token alone is left


class Engine:
    """`names` of modes to their `Mode`; `template` is None where prompts are plain text.

    Everything here runs on the event loop's thread, except the tokenizer and the template, which
    have threads of their own.
    """

    def __init__(
        self,
        name: str,
        model: Decoder,
        tokenizer: Tokenizer,
        modes: Mapping[str, Mode],
        *,
        default_mode: str,
        rows: int,
        context: int,
        limits: Limits | None = None,
        system: str | None = None,
        raw: bool = False,
        seed: int = 0,
    ):
        self.name, self.tokenizer, self.modes = name, tokenizer, modes
        self.default_mode, self.system, self.context = default_mode, system, context
        self.template = None if raw else tokenizer.chat_template
        limits = limits or Limits()
        most = min(limits.prompt_tokens, context - 1)
        self.limits = dataclasses.replace(limits, prompt_tokens=most)
        self.vocabulary = model.config.vocab_size
        self.rows = rows
        self._make_batch = lambda: FixedSizes(
            model,
            rows,
            context,
            steps=STEPS,
            pieces=[(min(n, rows), width) for n, width in PIECES],
            support=SUPPORT,
            best=TOP_LOGPROBS,
        )
        self.batch: Any = self._make_batch()
        self.scorer = PromptScorer(model, context)
        self._text = ThreadPoolExecutor(2, "text")
        self._random = random.Random(seed)

    async def in_text_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._text, function, *arguments)

    async def chat_prompt(self, ask: Ask) -> Prompt:
        """Raises `ApiError` for messages that the template refuses or that are too long."""
        messages = ask.messages
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        ask = dataclasses.replace(ask, messages=messages)
        mode = self.modes[ask.mode]
        prompt = await self.in_text_thread(
            chat_prompt, ask, mode, self.tokenizer, self.template, self.limits.prompt_tokens
        )
        self._check_length(prompt.tokens)
        return prompt

    async def text_prompt(self, text: str) -> list[int]:
        tokens = await self.in_text_thread(text_prompt, text, self.tokenizer)
        self._check_length(tokens)
        return tokens

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises `ApiError` for ids that the model does not have, and for too many or none."""
        if any(isinstance(x, bool) or not 0 <= x < self.vocabulary for x in tokens):
            raise ApiError(400, f"token ids must lie in [0, {self.vocabulary})", "prompt")
        self._check_length(tokens)

    def _check_length(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ApiError(400, "the prompt is empty", "prompt")
        if len(tokens) > self.limits.prompt_tokens:
            raise too_long(len(tokens), self.limits.prompt_tokens)

    def sampling(
        self, mode: str, *, temperature: float, top_p: float, top_k: int, new_tokens: int | None
    ) -> SamplingConfig:
        """How a mode's responses are drawn, with the client's settings and within the limits.

        A `top_k` of 0 or less is off, more than SUPPORT is SUPPORT.
        """
        base = self.modes[mode].sampling
        most = min(self.limits.new_tokens or self.context, self.context)
        return dataclasses.replace(
            base,
            temperature=temperature if temperature >= COLDEST else 0.0,
            top_p=max(top_p, LEAST_TOP_P),
            top_k=min(max(top_k, 0), SUPPORT),
            nucleus_size=SUPPORT,
            max_new_tokens=min(base.max_new_tokens if new_tokens is None else new_tokens, most),
            stop_ids=self.tokenizer.stop_ids,
        )

    async def respond(self, ask: Ask, prompt: Prompt, choice: int, emit: Emit) -> None:
        """Draws one response; its parts go to `emit` as they come.

        After `Limits.seconds` it ends where it is. Raises `ApiError` if it had not even begun.
        """
        reader = ResponseReader(
            prompt.family, ask.tools, thinking=prompt.thinking, given=prompt.given
        )
        called = 0

        def read(part: Part) -> None:
            nonlocal called
            found = [reader.push(part.content), *([reader.finish()] if part.finish else [])]
            calls = [call for one in found for call in one.calls]
            calls = calls if ask.parallel else calls[: max(0, 1 - called)]
            called += len(calls)
            finish = "tool_calls" if called and part.finish == "stop" else part.finish
            reasoning = "".join(one.reasoning for one in found) if ask.show_thoughts else ""
            emit(
                dataclasses.replace(
                    part,
                    reasoning=reasoning,
                    content="".join(one.content for one in found),
                    calls=tuple(Call(new_id(ask.call_prefix), *call) for call in calls),
                    malformed=sum(one.malformed for one in found),
                    finish="stop" if part.stop else finish,
                )
            )

        best = None if ask.top_logprobs is None else max(ask.top_logprobs, 1)
        await self.generate(
            prompt.tokens,
            ask.sampling,
            read,
            seed=ask.seed,
            choice=choice,
            stop=ask.stop,
            best=best,
        )

    async def generate(
        self,
        tokens: Sequence[int],
        sampling: SamplingConfig,
        emit: Emit,
        *,
        seed: int | None = None,
        choice: int = 0,
        stop: Sequence[str] = (),
        best: int | None = None,
    ) -> None:
        """As `respond`, without looking for calls and thoughts: all text is content."""
        decoder, stops = StreamDecoder(self.tokenizer), StopFinder(stop)
        deadline = time.monotonic() + self.limits.seconds
        finish: FinishReason | None = None
        begun = False

        def on_tokens(turn: Turn, count: int) -> bool:
            nonlocal finish, begun
            begun, text, scores, read = True, "", [], 0
            for place in range(len(turn.tokens) - count, len(turn.tokens)):
                token, read = turn.tokens[place], read + 1
                text += stops.push(decoder.push(token))
                if best is not None:
                    scores.append(_score(turn, place, sampling))
                if stops.found:
                    break
            if stops.found:
                finish = "stop"
            elif turn.ending is not None:
                finish = "stop" if turn.ending == "stop" else "length"
                text += stops.push(decoder.finish()) + stops.finish()
                finish = "stop" if stops.found else finish
            elif time.monotonic() > deadline:
                finish = "length"
            emit(Part("", text, (), tuple(scores), read, finish, stops.found))
            return finish is None

        session = self._live_batch().open(self._key(seed, choice), sampling)
        try:
            async with asyncio.timeout(self.limits.seconds + 1):
                await session.generate(tokens, best=best or 0, on_tokens=on_tokens)
        except TimeoutError:
            if not begun:
                message = f"no answer began within {self.limits.seconds:g} seconds: try again"
                raise ApiError(503, message, code="overloaded", retry_after=10) from None
            emit(Part(finish="length"))
        finally:
            session.close()

    def _live_batch(self) -> Any:
        """A new batch where the last one's device has failed; who was in it has been told."""
        if getattr(self.batch, "failure", None) is not None:
            logging.error("The batch failed and is made anew: %r", self.batch.failure)
            self.batch = self._make_batch()
        return self.batch

    def _key(self, seed: int | None, choice: int) -> jax.Array:
        number = self._random.getrandbits(32) if seed is None else seed % 2**32
        key = jax.random.key(number)
        return jax.random.fold_in(key, choice) if choice else key

    async def warm_up(self) -> None:
        """Compiles what requests need, by requests: each size of prompt and each way of drawing."""
        plain = SamplingConfig(1, 1, temperature=0.0, nucleus_size=SUPPORT)
        truncated = dataclasses.replace(plain, temperature=1.0, top_p=0.9)

        async def one(length: int, sampling: SamplingConfig, best: int | None = None) -> None:
            tokens = [0] * min(length, self.limits.prompt_tokens)
            await self.generate(tokens, sampling, lambda part: None, seed=0, best=best)

        await one(1, plain)
        await one(1, truncated)
        await one(1, plain, best=1)
        for count, width in PIECES:
            length = width // 2 + 2  # more than the next smaller width
            if length <= self.limits.prompt_tokens:
                await asyncio.gather(*(one(length, plain) for _ in range(min(count, self.rows))))


def _score(turn: Turn, place: int, sampling: SamplingConfig) -> TokenScore:
    token = turn.tokens[place]
    return TokenScore(
        token, turn.model_logprobs[place], tuple(turn.best[place]), token in sampling.stop_ids
    )
