"""What lm-eval 0.4.13 sends to a `local-completions` endpoint, and what it reads of the answer.

After `LocalCompletionsAPI._create_payload`, `.parse_logprobs` and `.parse_generations` of
lm_eval/models/openai_completions.py (MIT licence).
"""

from operator import itemgetter


def loglikelihood_payload(model: str, prompts: list[list[int]] | list[str] | str) -> dict:
    return {
        "model": model,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }


def generation_payload(model: str, prompts, until: list[str], max_tokens: int) -> dict:
    return {
        "prompt": prompts,
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stop": until,
        "seed": 1234,
    }


def parse_logprobs(outputs: dict, ctxlens: list[int]) -> list[tuple[float, bool]]:
    """(log-likelihood of what follows each context, whether it is the greedy continuation)."""
    res = []
    for choice, ctxlen in zip(
        sorted(outputs["choices"], key=itemgetter("index")), ctxlens, strict=False
    ):
        assert ctxlen > 0, "Context length must be greater than 0"
        logprobs = sum(choice["logprobs"]["token_logprobs"][ctxlen:-1])
        tokens_logprobs = choice["logprobs"]["token_logprobs"][ctxlen:-1]
        top_logprobs = choice["logprobs"]["top_logprobs"][ctxlen:-1]
        is_greedy = True
        for tok, top in zip(tokens_logprobs, top_logprobs, strict=False):
            if tok != max(top.values()):
                is_greedy = False
                break
        res.append((logprobs, is_greedy))
    return res


def parse_generations(outputs: dict) -> list[str]:
    tmp: list = [None] * len(outputs["choices"])
    for choices in outputs["choices"]:
        tmp[choices["index"]] = choices["text"]
    return tmp
