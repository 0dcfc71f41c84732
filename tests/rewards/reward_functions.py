"""Rewards that tests name by import path."""

import asyncio

NOT_A_FUNCTION = 1


def exact_match(sample):
    return float(sample.response == sample.label)


def length(sample):
    return len(sample.response)


def detailed(sample, *, right):
    return {"reward": 0.7, "solved": sample.response == right, "detail": 9}


async def slow_async(sample):
    await asyncio.sleep(0.01)
    return {"score": 4.0}


async def meets(sample):
    """Returns once it was called twice."""
    sample.metadata["meeting"].append(1)
    while len(sample.metadata["meeting"]) < 2:
        await asyncio.sleep(0.001)
    return 1.0


def fails_on_b(sample):
    return {"a": 1.0}[sample.response]
