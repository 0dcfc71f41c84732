"""Other code bases' bounds give the ratios that those code bases would."""

import numpy as np
import pytest

from mmrl.rl.conventions import roll_bounds, slime_bounds, trl_bounds
from mmrl.rl.ratios import ratio_bounds

RATIOS = np.array([0.0, 0.15, 0.5, 1.0, 1.15, 3.0, 5.5, 100.0])


def clipped(bounds):
    return np.clip(RATIOS, *ratio_bounds(*bounds))


@pytest.mark.parametrize(
    ("arguments", "low", "high"),
    [((), 0.8, 1.2), ((0.2, 5.0), 0.8, 6.0), ((1.0, 4.0), 0.0, 5.0), ((0.1,), 0.9, 1.1)],
)
def test_slime_clamps_on_both_sides_and_by_deltas(arguments, low, high):
    np.testing.assert_allclose(clipped(slime_bounds(*arguments)), np.clip(RATIOS, low, high))


def test_trl_caps_the_ratio_itself_and_has_no_lower_bound():
    np.testing.assert_allclose(clipped(trl_bounds(5.0)), np.minimum(RATIOS, 5.0))


def test_trl_s_default_is_refused():
    with pytest.raises(ValueError, match="would shrink on-policy gradients"):
        trl_bounds(0.2)


def test_roll_clamps_on_both_sides_and_by_deltas():
    np.testing.assert_allclose(clipped(roll_bounds()), np.clip(RATIOS, 0.9, 1.1))
