import numpy as np
import pytest

from mmrl.data import Sample
from mmrl.rewards.lengths import budget, overlong


@pytest.mark.parametrize("length", [0, 10, 15, 16, 18, 20, 25])
def test_overlong_is_dapos_equation_13(length):
    """max_length 20, buffer 5: 0, (L_max - L_cache - y) / L_cache, -1."""
    expected = 0 if length <= 15 else (15 - length) / 5 if length <= 20 else -1
    value = overlong(Sample(response_length=length), max_length=20, buffer=5)
    assert value == pytest.approx(expected)


def test_a_budget_is_one_within_and_nothing_at_twice_as_many_tokens():
    values = [budget(Sample(response_length=n), tokens=10) for n in (0, 10, 15, 20, 40)]
    np.testing.assert_allclose(values, [1, 1, 0.5, 0, 0])


def test_the_mode_of_the_prompt_names_its_budget():
    tokens = {"lightning": 10, "pro": 40}
    quick, thorough = (Sample(response_length=20, metadata={"mode": mode}) for mode in tokens)
    assert budget(quick, tokens=tokens) == 0 and budget(thorough, tokens=tokens) == 1
    with pytest.raises(ValueError, match="mode is 'None', not one of lightning, pro"):
        budget(Sample(), tokens=tokens)
    with pytest.raises(ValueError, match="at least 1"):
        budget(Sample(), tokens=0)
