"""A punishment of responses that repeat themselves: `mmrl.rewards.repetition:penalty`."""

from collections.abc import Sequence

from mmrl.data.records import Sample


def penalty(sample: Sample, *, ngram: int = 16, allowed: float = 0.0) -> float:
    """-(share of the response's n-grams of tokens that stood in it before), in [-1, 0].

    A share of up to `allowed` is not punished, and what is beyond it is scaled so that -1 remains
    the least. Arguments and tables repeat short n-grams by their nature: 16 tokens are about a
    sentence. Raises ValueError for settings out of range.
    """
    if not 0 <= allowed < 1:
        raise ValueError(f"allowed must be in [0, 1), got {allowed}")
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return -max(0.0, repeated_share(response, ngram) - allowed) / (1 - allowed)


def repeated_share(tokens: Sequence[int], ngram: int) -> float:
    """1 - distinct n-grams / n-grams, 0 for fewer than n tokens."""
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, got {ngram}")
    grams = list(zip(*(tokens[start:] for start in range(ngram)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
