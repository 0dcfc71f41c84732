"""Nearly the same text: the share of common shingles, and MinHash to find pairs among many.

A shingle is four consecutive characters. Texts with other numbers are never alike: "12 * 34" and
"12 * 35" are two problems.
"""

import functools
import re
import zlib

import numpy as np

SHINGLE = 4
BANDS, ROWS = 24, 4  # pairs of a likeness of 0.8 share a band with probability 1 - 3e-6


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.casefold().split()).strip(" .!?,;:\"'`*")


@functools.lru_cache(maxsize=1024)
def numbers(text: str) -> tuple[str, ...]:
    """The runs of digits, in their order."""
    return tuple(re.findall(r"\d+", text))


@functools.lru_cache(maxsize=1024)
def shingles(text: str) -> frozenset[str]:
    """All runs of four characters of the normalised text; itself, if it is shorter."""
    text = normalised(text)
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def likeness(first: str, second: str) -> float:
    """From 0 to 1: Jaccard's index of the shingles; 0 where the numbers differ."""
    if numbers(first) != numbers(second):
        return 0.0
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def bands(text: str) -> list[bytes]:
    """Keys, of which two texts probably share one if they are alike (Broder 1997).

    Each is made of `ROWS` MinHash values, so that a pair of likeness s shares one of the `BANDS`
    keys with probability 1 - (1 - s^ROWS)^BANDS.
    """
    codes = np.asarray([zlib.crc32(s.encode(errors="replace")) for s in shingles(text)], np.uint64)
    values = (codes[:, None] * _FACTORS + _SUMMANDS) >> np.uint64(32)
    smallest = values.min(axis=0).reshape(BANDS, ROWS)
    return [bytes([i]) + row.tobytes() for i, row in enumerate(smallest)]


_GENERATOR = np.random.default_rng(0)
# Multiply-shift hashing (Dietzfelbinger 1997): odd factors, sums modulo 2^64, the upper half.
_FACTORS = 2 * _GENERATOR.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64) + 1
_SUMMANDS = _GENERATOR.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64)
