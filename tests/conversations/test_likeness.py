"""Likeness: Jaccard's index by another way, and MinHash's probability to find a pair."""

import random

import pytest

from mmrl.conversations.likeness import BANDS, ROWS, bands, likeness, shingles


def test_likeness_is_the_share_of_common_shingles():
    # abcd bcde | bcde cdef
    assert likeness("abcde", "bcdef") == pytest.approx(1 / 3)
    assert likeness("Abc  de.", "abc de") == 1
    assert likeness("ab", "ab") == 1 and likeness("ab", "ba") == 0


def test_other_numbers_are_another_text():
    long = "How many apples are left in the basket of " * 5
    assert likeness(f"{long} 12?", f"{long} 13?") == 0
    assert likeness(f"{long} 12?", f"{long} 12!") == 1


@pytest.mark.parametrize("share", [0.35, 0.9])
def test_pairs_share_a_band_as_often_as_minhash_promises(share):
    """Of random texts with a given share of equal shingles, against 1 - (1 - s^r)^b."""
    random.seed(0)
    found, expected, count = 0, 0.0, 200
    letters = "abcdefghijklmnopqrstuvwxyz"
    for _ in range(count):
        common = "".join(random.choices(letters, k=round(200 * share)))
        tails = ["".join(random.choices(letters, k=round(100 * (1 - share)))) for _ in "ab"]
        a, b = (common + tail for tail in tails)
        s = len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
        expected += 1 - (1 - s**ROWS) ** BANDS
        found += not set(bands(a)).isdisjoint(bands(b))
    assert 0.25 < expected / count < 0.6 or expected / count > 0.98
    assert abs(found - expected) / count < 0.08
