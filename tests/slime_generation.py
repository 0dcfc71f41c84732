"""Custom generation functions as slime's examples write them (examples/retool, search-r1)."""

from slime.rollout.sglang_rollout import GenerateState
from slime.utils.http_utils import post
from slime.utils.types import Sample


async def two_letters(args, sample: Sample, sampling_params) -> Sample:
    """The task of `oracles.two_letters`, by token ids; its reward is the function's own."""
    assert not args.partial_rollout
    state = GenerateState(args)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    prompt = state.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    tokens, mask, logprobs, right = [], [], [], 0
    for turn, letter in enumerate([sample.prompt[0], sample.label]):
        payload = {
            "input_ids": prompt + tokens,
            "sampling_params": sampling_params,
            "return_logprob": True,
        }
        output = await post(url, payload)
        drawn = output["meta_info"]["output_token_logprobs"]
        tokens += [item[1] for item in drawn]
        logprobs += [item[0] for item in drawn]
        mask += [1] * len(drawn)
        if output["meta_info"]["finish_reason"]["type"] == "length":
            sample.status = Sample.Status.TRUNCATED
            break
        right += output["text"] == letter
        if turn == 0:
            shown = state.tokenizer(f"{sample.label}>", add_special_tokens=False)["input_ids"]
            tokens += shown
            logprobs += [0.0] * len(shown)
            mask += [0] * len(shown)
    sample.tokens = prompt + tokens
    sample.response_length = len(tokens)
    sample.response = state.tokenizer.decode(tokens)
    sample.loss_mask = mask
    sample.rollout_log_probs = logprobs
    sample.letters_right = right
    if sample.status is Sample.Status.PENDING:
        sample.status = Sample.Status.COMPLETED
    return sample


async def reward(args, sample: Sample, **kwargs) -> float:
    return sample.letters_right / 2


async def by_text(args, sample: Sample, sampling_params) -> Sample:
    """Posts text, appends as slime's Sample does, and forgets the first turn for the second."""
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    await post(url, {"text": sample.prompt, "sampling_params": sampling_params})
    sample.tokens = GenerateState(args).tokenizer.encode("d>")
    output = await post(url, {"text": "d>", "sampling_params": sampling_params})
    meta = output["meta_info"]
    drawn = meta["output_token_logprobs"]
    ids, logprobs = [item[1] for item in drawn], [item[0] for item in drawn]
    sample.append_response_tokens(args, ids, logprobs, True, meta, output["text"])
    return sample


async def made_up(args, sample: Sample, sampling_params) -> Sample:
    """Trains on a token that nobody drew."""
    sample.tokens, sample.response_length = [3, 4], 1
    return sample


async def warm(args, sample: Sample, sampling_params) -> Sample:
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    await post(url, {"text": sample.prompt, "sampling_params": {"temperature": 0.1}})
    return sample


async def several(args, sample: Sample, sampling_params) -> list[Sample]:
    return [sample, sample]
