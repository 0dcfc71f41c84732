"""Anthropic's messages: parts of replies to JSON, at once or as the events of a stream."""

import json
from typing import Any

from mmrl.serving.ask import Ask, Part, Reply
from mmrl.serving.http import event_lines
from mmrl.serving.limits import ApiError

SIGNATURE = "mmrl"  # of thoughts; clients send it back and nobody checks it
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def message_json(ask: Ask, identity: str, prompt_tokens: int, reply: Reply) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": SIGNATURE})
    if reply.content:
        content.append({"type": "text", "text": reply.content})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        for call in reply.calls
    ]
    return _message(ask, identity, content, prompt_tokens, reply.tokens) | _ending(reply)


def error_json(error: ApiError, identity: str | None = None) -> dict[str, Any]:
    kind = _ERRORS.get(error.status, "api_error" if error.status >= 500 else None)
    details = {"type": kind or "invalid_request_error", "message": error.message}
    return {"type": "error", "error": details, "request_id": identity}


class MessageEvents:
    """The events of a stream: each block of the content begins, grows and ends before the next."""

    encode = staticmethod(event_lines)
    error_json = staticmethod(error_json)
    ping, last = event_lines({"type": "ping"}), ""

    def __init__(self, ask: Ask, identity: str, prompt_tokens: int):
        self._ask, self._identity, self._prompt_tokens = ask, identity, prompt_tokens
        self._open: str | None = None  # the type of the block that grows
        self._index = -1
        self._reply = Reply()

    def begin(self) -> list[dict[str, Any]]:
        message = _message(self._ask, self._identity, [], self._prompt_tokens, 0)
        ending = {"stop_reason": None, "stop_sequence": None}
        return [{"type": "message_start", "message": message | ending}]

    def part(self, choice: int, part: Part) -> list[dict[str, Any]]:
        self._reply.add(Part(tokens=part.tokens, finish=part.finish, stop=part.stop))
        events: list[dict[str, Any]] = []
        if part.reasoning:
            events += self._block("thinking", {"thinking": "", "signature": ""})
            events.append(self._delta("thinking_delta", thinking=part.reasoning))
        if part.content:
            events += self._block("text", {"text": ""})
            events.append(self._delta("text_delta", text=part.content))
        for call in part.calls:
            events += self._close()
            events += self._block("tool_use", {"id": call.id, "name": call.name, "input": {}})
            arguments = json.dumps(call.arguments)
            events.append(self._delta("input_json_delta", partial_json=arguments))
        return events

    def end(self) -> list[dict[str, Any]]:
        delta = {
            "type": "message_delta",
            "delta": _ending(self._reply),
            "usage": _usage(self._prompt_tokens, self._reply.tokens),
        }
        return [*self._close(), delta, {"type": "message_stop"}]

    def _block(self, kind: str, content: dict[str, Any]) -> list[dict[str, Any]]:
        """Begins a block of this kind, unless one grows already."""
        if self._open == kind:
            return []
        events = self._close()
        self._open, self._index = kind, self._index + 1
        block = {"type": kind} | content
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*events, start]

    def _close(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        signed = [self._delta("signature_delta", signature=SIGNATURE)]
        events = signed if self._open == "thinking" else []
        self._open = None
        return [*events, {"type": "content_block_stop", "index": self._index}]

    def _delta(self, kind: str, **content: str) -> dict[str, Any]:
        delta = {"type": kind} | content
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _message(
    ask: Ask, identity: str, content: list, prompt_tokens: int, tokens: int
) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": content,
        "usage": _usage(prompt_tokens, tokens),
    }


def _ending(reply: Reply) -> dict[str, Any]:
    reason = "stop_sequence" if reply.stop else _REASONS.get(reply.finish, "end_turn")
    return {"stop_reason": reason, "stop_sequence": reply.stop}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": completion_tokens,
    }
