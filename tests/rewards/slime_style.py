"""Rewards and filters as a user of slime writes them: its imports, its signatures, its fields."""

from slime.rollout.filter_hub.base_types import DynamicFilterOutput
from slime.utils.types import Sample


async def reward(args, sample: Sample, **kwargs) -> float:
    if sample.status == Sample.Status.TRUNCATED:
        return -1.0
    return float(sample.response == sample.label) * args.n_samples_per_prompt


async def detailed(args, sample: Sample, **kwargs) -> dict:
    return {"acc": float(sample.response == sample.label), "pred": sample.response, "score": 9.0}


async def ranks(args, samples: list[Sample], **kwargs) -> list[float]:
    order = sorted(range(len(samples)), key=lambda i: samples[i].effective_response_length)
    return [float(order.index(i)) for i in range(len(samples))]


async def too_few(args, samples: list[Sample], **kwargs) -> list[float]:
    if samples[0].group_index == 1:
        return [1.0]
    return [1.0] * len(samples)


def keep_some_solved(args, samples: list[Sample], **kwargs) -> DynamicFilterOutput:
    rewards = [sample.get_reward_value(args) for sample in samples]
    keep = 0 < sum(rewards) < len(rewards)
    return DynamicFilterOutput(keep=keep, reason=None if keep else "all_or_none")


def keep_even(args, samples: list[Sample], **kwargs) -> bool:
    return samples[0].group_index % 2 == 0


def unknown_argument(args, sample: Sample, **kwargs) -> float:
    return args.sglang_router_port


def drops(args, sample: Sample, **kwargs) -> float:
    sample.remove_sample = sample.index % 2 == 1
    return float(sample.index % 4)


def plain(sample) -> float:
    return 0.25
