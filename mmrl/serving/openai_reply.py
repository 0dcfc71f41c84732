"""OpenAI's chat completions: parts of replies to JSON, at once or as chunks of a stream."""

import json
import time
from collections.abc import Sequence
from typing import Any

from mmrl.serving.ask import Ask, Call, Part, Reply, TokenScore
from mmrl.serving.http import data_line
from mmrl.serving.limits import ApiError
from mmrl.text import Tokenizer


def error_json(error: ApiError) -> dict[str, Any]:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "server_error" if error.status >= 500 else None)
    return {
        "error": {
            "message": error.message,
            "type": kind or "invalid_request_error",
            "param": error.parameter,
            "code": error.code,
        }
    }


class ChatChunks:
    """The events of a stream, each a JSON object; `choices` responses share it."""

    encode = staticmethod(data_line)
    error_json = staticmethod(error_json)
    ping, last = ": ping\n\n", "data: [DONE]\n\n"

    def __init__(self, ask: Ask, identity: str, tokenizer: Tokenizer, prompt_tokens: int):
        self._ask, self._tokenizer, self._prompt_tokens = ask, tokenizer, prompt_tokens
        self._base = {"id": identity, "created": int(time.time()), "model": ask.model}
        self._calls = [0] * ask.choices
        self._tokens = 0

    def begin(self) -> list[dict[str, Any]]:
        role = {"role": "assistant", "content": ""}
        return [self._chunk(i, role) for i in range(self._ask.choices)]

    def part(self, choice: int, part: Part) -> list[dict[str, Any]]:
        self._tokens += part.tokens
        delta: dict[str, Any] = {}
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        if part.content:
            delta["content"] = part.content
        if part.calls:
            delta["tool_calls"] = [
                {"index": self._calls[choice] + i} | call_json(call)
                for i, call in enumerate(part.calls)
            ]
            self._calls[choice] += len(part.calls)
        logprobs = None
        if self._ask.top_logprobs is not None and part.scores:
            logprobs = chat_logprobs(part.scores, self._tokenizer, self._ask.top_logprobs)
        chunks = [self._chunk(choice, delta, logprobs=logprobs)] if delta or logprobs else []
        return chunks + ([self._chunk(choice, {}, part.finish)] if part.finish else [])

    def end(self) -> list[dict[str, Any]]:
        if not self._ask.usage_in_stream:
            return []
        counts = usage(self._prompt_tokens, self._tokens)
        return [self._base | {"object": "chat.completion.chunk", "choices": [], "usage": counts}]

    def _chunk(self, choice: int, delta: dict, finish=None, logprobs=None) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = self._base | {"object": "chat.completion.chunk", "choices": [entry]}
        return chunk | ({"usage": None} if self._ask.usage_in_stream else {})


def chat_completion(
    ask: Ask, identity: str, tokenizer: Tokenizer, prompt_tokens: int, replies: Sequence[Reply]
) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    choices = [
        {
            "index": i,
            "message": assistant_message(reply),
            "logprobs": None
            if ask.top_logprobs is None
            else chat_logprobs(reply.scores, tokenizer, ask.top_logprobs),
            "finish_reason": reply.finish,
        }
        for i, reply in enumerate(replies)
    ]
    return {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ask.model,
        "choices": choices,
        "usage": usage(prompt_tokens, sum(reply.tokens for reply in replies)),
    }


def assistant_message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or None}
    if not reply.calls:
        message["content"] = reply.content
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [call_json(call) for call in reply.calls]
    return message


def call_json(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def chat_logprobs(
    scores: Sequence[TokenScore], tokenizer: Tokenizer, listed: int
) -> dict[str, Any]:
    """As OpenAI lists them; the token that ends the response has no text and is left out."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

    return {
        "content": [
            entry(score.token, score.logprob)
            | {"top_logprobs": [entry(*pair) for pair in score.best[:listed]]}
            for score in scores
            if not score.stops
        ],
        "refusal": None,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
