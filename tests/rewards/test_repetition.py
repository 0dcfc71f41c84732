import random

import pytest

from mmrl.data import Sample
from mmrl.rewards.repetition import penalty, repeated_share


def naive_share(tokens, ngram):
    """Counts n-grams that stood before, one by one."""
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    repeated = sum(grams[i] in grams[:i] for i in range(len(grams)))
    return repeated / len(grams) if grams else 0


@pytest.mark.parametrize("ngram", [1, 2, 3, 7])
def test_the_share_is_that_of_a_naive_count(ngram):
    rng = random.Random(ngram)
    for length in (0, 1, ngram - 1, ngram, 40):
        tokens = [rng.randrange(3) for _ in range(length)]
        assert repeated_share(tokens, ngram) == pytest.approx(naive_share(tokens, ngram))


def test_only_the_response_counts():
    looping = Sample(tokens=[9, 8, 7, 1, 1, 1, 1, 1], response_length=5)
    assert penalty(looping, ngram=2) == pytest.approx(-3 / 4)
    assert penalty(Sample(tokens=[1, 1, 1, 1, 2, 3, 4], response_length=3), ngram=1) == 0
    assert penalty(Sample(tokens=[1, 1, 1], response_length=0), ngram=1) == 0


def test_an_allowed_share_is_not_punished():
    looping = Sample(tokens=[1, 1, 1, 1, 1], response_length=5)
    assert penalty(looping, ngram=2, allowed=0.75) == 0
    assert penalty(looping, ngram=2, allowed=0.5) == pytest.approx(-0.5)
    constant = Sample(tokens=[1] * 1000, response_length=1000)
    assert penalty(constant, ngram=2, allowed=0.5) == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize("settings", [{"ngram": 0}, {"allowed": 1.0}, {"allowed": -0.1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        penalty(Sample(tokens=[1, 2], response_length=2), **settings)
