"""Token weights against loops over samples."""

import numpy as np
import pytest

from mmrl.rl.aggregation import AGGREGATIONS, token_weights

LENGTHS = np.array([[5, 2, 0, 1], [0, 0, 0, 0], [3, 5, 4, 4]])
MASK = (np.arange(5) < LENGTHS[..., None]).astype(np.float32)
MASK[2, 1, 2] = 0  # a tool's token between sampled ones
COUNTS = MASK.sum(-1)


def loop(aggregation, max_length=5, sample_fraction=0.5):
    groups = sum(COUNTS[p].sum() > 0 for p in range(3))
    samples = (COUNTS > 0).sum()
    weights = np.zeros(MASK.shape)
    for p, i, t in np.argwhere(MASK):
        per_sample = 1 / COUNTS[p, i] / samples
        per_group = 1 / COUNTS[p].sum() / groups
        weights[p, i, t] = {
            "group": per_group,
            "batch": 1 / COUNTS.sum(),
            "sample": per_sample,
            "constant": 1 / max_length / samples,
            "combined": sample_fraction * per_sample + (1 - sample_fraction) * per_group,
        }[aggregation]
    return weights


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_equal_a_loop(aggregation):
    np.testing.assert_allclose(token_weights(MASK, aggregation), loop(aggregation), rtol=1e-6)


@pytest.mark.parametrize("aggregation", sorted(set(AGGREGATIONS) - {"constant"}))
def test_weights_sum_to_one_so_a_loss_is_a_mean(aggregation):
    np.testing.assert_allclose(token_weights(MASK, aggregation).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("max_length", [1, 64])
def test_constant_divides_every_token_alike(max_length):
    weights = np.asarray(token_weights(MASK, "constant", max_length=max_length))
    np.testing.assert_allclose(weights, loop("constant", max_length=max_length), rtol=1e-6)


def test_combined_runs_from_group_to_sample():
    for fraction in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(
            token_weights(MASK, "combined", sample_fraction=fraction),
            loop("combined", sample_fraction=fraction),
            rtol=1e-6,
        )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_gives_zeros(aggregation):
    np.testing.assert_array_equal(token_weights(np.zeros((2, 3, 4)), aggregation), 0)


def test_fewer_axes_are_one_group_and_one_sample():
    np.testing.assert_allclose(token_weights(MASK[0], "group"), MASK[0] / 8, rtol=1e-6)
    np.testing.assert_allclose(token_weights(MASK[0, 1], "group"), [0.5, 0.5, 0, 0, 0])


def test_an_unknown_aggregation_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'batch'"):
        token_weights(MASK, "bacth")
