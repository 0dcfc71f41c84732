"""What slime's functions reach for when they generate, on mmrl's sampler.

They post to SGLang's router, `http://{args.sglang_router_ip}:{…_port}/generate`, by
`slime.utils.http_utils.post`, and tokenize by `slime.rollout.sglang_rollout.GenerateState(args)`.
`MODULES` are what stands for both: a post to the router reads in the sample's session what is new
and draws on, and any other address is asked over HTTP.
"""

import asyncio
import contextvars
import json
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.errors import UserError
from mmrl.rollout.continuous import Session
from mmrl.rollout.sampling import SamplingConfig
from mmrl.text import Tokenizer

ROUTER = "mmrl"  # the host that args.sglang_router_ip names
HTTP_SECONDS = 600
ENDPOINT: contextvars.ContextVar["Endpoint"] = contextvars.ContextVar("endpoint")  # of this task


@dataclass
class Endpoint:
    """SGLang's /generate for one sample: a session, and the log-probability of what it drew.

    `drawn` is beside the session's tokens, None where a token was given. `room` is the most tokens
    that the session may hold.
    """

    session: Session
    tokenizer: Tokenizer
    room: int
    drawn: list[float | None] = field(default_factory=list)
    turns: int = 0

    async def generate(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request, as SGLang gives it."""
        given = payload.get("input_ids")
        if given is None:
            given = self.tokenizer.encode(payload["text"], special=True)
        _check_sampling(payload.get("sampling_params") or {}, self.session.sampling)
        known = self.session.tokens
        if list(given[: len(known)]) != known:
            self.session.restart()
            self.drawn, known = [], []
        new = [int(token) for token in given[len(known) :]]
        limit = (payload.get("sampling_params") or {}).get("max_new_tokens")
        limit = self.session.sampling.max_new_tokens if limit is None else int(limit)
        limit = min(limit, self.room - len(given))
        if limit < 1:
            return self._answer([], [], "length", len(given))
        turn = await self.session.generate(new, max_new_tokens=limit)
        self.turns += 1
        self.drawn += [*[None] * len(new), *turn.logprobs]
        reason = "stop" if turn.ending == "stop" else "length"
        return self._answer(turn.tokens, turn.logprobs, reason, len(given))

    def _answer(
        self, tokens: list[int], logprobs: list[float], reason: str, prompt: int
    ) -> dict[str, Any]:
        meta = {
            "finish_reason": {"type": reason},
            "output_token_logprobs": [
                [logprob, token, None] for logprob, token in zip(logprobs, tokens, strict=True)
            ],
            "prompt_tokens": prompt,
            "completion_tokens": len(tokens),
        }
        return {"text": self.tokenizer.decode(tokens), "output_ids": tokens, "meta_info": meta}


def _check_sampling(asked: Mapping[str, Any], sampling: SamplingConfig) -> None:
    """The trainer scores at the run's settings, so no request may have others."""
    fixed = {"temperature": sampling.temperature, "top_p": 1.0, "top_k": -1}
    for name, value in fixed.items():
        given = asked.get(name, value)
        if given not in (value, None) and not (name == "top_k" and given == 0):
            raise UserError(
                f"a custom generation function asks for {name}={given}, the run has {value}: "
                "tokens are trained on as they were drawn, so all of them at the run's settings"
            )
    if asked.get("stop"):
        raise UserError(
            f"a custom generation function asks to stop at {asked['stop']!r}: responses end at "
            "tokens, sampling_params['stop_token_ids'] of --rollout-stop-token-ids"
        )


def sampling_params(sampling: SamplingConfig) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "max_new_tokens": sampling.max_new_tokens,
        "stop": None,
        "stop_token_ids": list(sampling.stop_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }


class HuggingFaceTokenizer:
    """As much of a Hugging Face tokenizer as such functions call."""

    def __init__(self, tokenizer: Tokenizer):
        self.own = tokenizer
        self.eos_token_id, self.pad_token_id = tokenizer.eos_id, tokenizer.pad_id

    def __call__(self, text: str, add_special_tokens: bool = False, **_: Any) -> dict[str, Any]:
        return {"input_ids": self.encode(text)}

    def encode(self, text: str, add_special_tokens: bool = False, **_: Any) -> list[int]:
        return self.own.encode(text, special=True)

    def decode(self, ids: Sequence[int] | int, **_: Any) -> str:
        return self.own.decode([ids] if isinstance(ids, int) else ids)

    def apply_chat_template(
        self, messages: Any, tools: Any = None, tokenize: bool = True, **variables: Any
    ) -> Any:
        if self.own.chat_template is None:
            raise UserError("a custom generation function needs a tokenizer with a chat template")
        begins = variables.pop("add_generation_prompt", False)
        text = self.own.chat_template.render(messages, tools, begins, **variables)
        return self.encode(text) if tokenize else text


class GenerateState:
    """slime's of this name: what its functions read of it."""

    def __init__(self, args: Any):
        self.args, self.processor, self.aborted = args, None, False
        self.tokenizer = HuggingFaceTokenizer(args.tokenizer)
        self.sampling_params = sampling_params(ENDPOINT.get().session.sampling)


def get_model_url(args: Any, model_name: str, endpoint: str = "/generate") -> str:
    """slime's of this name; there is one model."""
    return f"http://{args.sglang_router_ip}:{args.sglang_router_port}{endpoint}"


async def post(url: str, payload: Any, *_: Any, headers: Any = None, **__: Any) -> Any:
    """slime's of this name: the sampler's answer for the router's /generate, else HTTP's."""
    place = urllib.parse.urlsplit(url)
    if place.hostname != ROUTER:
        return await asyncio.to_thread(_http, url, payload, headers)
    if place.path != "/generate":
        raise UserError(
            f"a custom generation function posts to {place.path}: mmrl's sampler has /generate, "
            "with text or input_ids"
        )
    return await ENDPOINT.get().generate(payload)


def _http(url: str, payload: Any, headers: Mapping[str, str] | None) -> Any:
    request = urllib.request.Request(
        url,
        json.dumps(payload).encode(),
        {"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:
        return json.load(answer)


MODULES: Mapping[str, Mapping[str, Any]] = {
    "slime.utils.http_utils": {"post": post},
    "slime.rollout.sglang_rollout": {
        "GenerateState": GenerateState,
        "get_model_url": get_model_url,
    },
}
