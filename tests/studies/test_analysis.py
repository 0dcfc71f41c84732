"""The statistics of the studies, against enumeration and counting by hand."""

import itertools
import json
import math

import numpy as np
import pytest

from mmrl.studies.analysis import Curve, Race, area, by_probability, race, read_curve, steps_to

STEPS = np.asarray([0, 5, 10, 20])
SLOW = Curve(STEPS, np.asarray([[0.1, 0.2, 0.3, 0.5], [0.1, 0.1, 0.4, 0.6], [0.1, 0.3, 0.3, 0.4]]))
FAST = Curve(STEPS, np.asarray([[0.1, 0.4, 0.6, 0.7], [0.1, 0.5, 0.5, 0.6], [0.1, 0.3, 0.7, 0.6]]))


def every_resample(curve: Curve) -> list[np.ndarray]:
    """The mean curve of each of the N^N equally likely draws of N runs."""
    runs = range(len(curve.values))
    return [
        np.mean([curve.values[i] for i in draw], axis=0)
        for draw in itertools.product(runs, repeat=len(runs))
    ]


def first_step(curve: np.ndarray, score: float) -> float:
    """The first of many small steps at which the curve, drawn with straight lines, has `score`."""
    fine = np.linspace(STEPS[0], STEPS[-1], 20_001)
    reached = fine[np.interp(fine, STEPS, curve) >= score]
    return reached[0] if len(reached) else math.inf


@pytest.mark.parametrize("score", [0.0, 0.1, 0.25, 0.3, 0.31, 0.6, 0.61])
def test_steps_to_a_score_are_those_of_a_fine_scan(score):
    curve = np.asarray([0.1, 0.4, 0.2, 0.6])  # falls between: the first crossing counts
    expected = first_step(curve, score - 1e-12)
    assert steps_to(STEPS, curve, score) == pytest.approx(expected, abs=2e-3)


def test_intervals_over_seeds_are_those_of_every_possible_resample():
    low, high = SLOW.interval()
    means = np.asarray(every_resample(SLOW))
    for found, tails in ((low, (0.015, 0.035)), (high, (0.965, 0.985))):
        least, most = np.quantile(means, tails, axis=0, method="inverted_cdf")
        assert np.all(found >= least - 1e-12) and np.all(found <= most + 1e-12)
    assert low[0] == pytest.approx(0.1) and high[0] == pytest.approx(0.1)
    assert np.all(high[1:] > low[1:])


def test_a_race_has_the_bounds_of_every_pair_of_resamples():
    found = race(FAST, SLOW)
    pairs = [
        (first_step(fast, slow[-1]), first_step(slow, slow[-1]))
        for fast in every_resample(FAST)
        for slow in every_resample(SLOW)
    ]
    shares = np.asarray([fast / slow for fast, slow in pairs])
    steps = np.asarray([fast for fast, _ in pairs])
    assert found.steps[0] == pytest.approx(first_step(FAST.mean(), SLOW.mean()[-1]), abs=2e-3)
    assert found.share[0] == pytest.approx(found.steps[0] / 20)
    for exact, (_, low, high) in ((steps, found.steps), (shares, found.share)):
        assert np.quantile(exact, 0.01) - 1e-3 <= low <= np.quantile(exact, 0.04) + 1e-3
        assert np.quantile(exact, 0.96) - 1e-3 <= high <= np.quantile(exact, 0.99) + 1e-3
    assert found.verdict == "partly"


def test_a_curve_that_never_gets_there_loses_the_race():
    flat = Curve(STEPS, np.full((3, 4), 0.1))
    assert race(flat, SLOW).steps == (math.inf,) * 3
    assert race(flat, SLOW).verdict == "not reproduced"
    assert race(SLOW, SLOW).share[0] == 1


@pytest.mark.parametrize(
    ("high", "verdict"),
    [(0.5, "reproduced"), (0.51, "partly"), (0.99, "partly"), (1, "not reproduced")],
)
def test_the_verdict_is_the_upper_bounds(high, verdict):
    assert Race((1, 1, 1), (0.3, 0.2, high)).verdict == verdict


def test_the_area_is_the_mean_height_between_unequal_steps():
    curve = Curve(STEPS, np.asarray([[0.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]]))
    np.testing.assert_allclose(area(curve), [(2.5 + 5 + 5) / 20, 0.5])


def write_metrics(workdir, rows):
    workdir.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)
    return workdir


def test_bins_are_shares_of_all_tokens_of_all_runs(tmp_path):
    """Tokens drawn at random, counted at once here and a step at a time in the metrics."""
    rng = np.random.default_rng(1)
    place = rng.integers(0, 3, (2, 4, 50))  # runs, steps, tokens
    clipped, dropped = rng.integers(0, 2, (2, *place.shape))
    gradient = rng.uniform(size=place.shape)
    workdirs = []
    for run in range(2):
        rows = [{"step": 0, "phase": "rl", "eval/solved": 0.5}]
        for step in range(4):
            row = {"step": step + 1, "phase": "rl"}
            for i in range(4):  # the last bin is empty
                inside = place[run, step] == i
                row |= {
                    f"probability/tokens/{i}": inside.mean(),
                    f"probability/clipped/{i}": (clipped[run, step] * inside).mean(),
                    f"probability/dropped/{i}": (dropped[run, step] * inside).mean(),
                    f"probability/gradient/{i}": (gradient[run, step] * inside).mean(),
                }
            rows.append(row)
        workdirs.append(write_metrics(tmp_path / str(run), rows))
    found = by_probability(workdirs, 4)
    for i in range(3):
        inside = place == i
        assert found["tokens"][i] == pytest.approx(inside.mean())
        assert found["clipped"][i] == pytest.approx(clipped[inside].mean())
        assert found["dropped"][i] == pytest.approx(dropped[inside].mean())
        assert found["gradient"][i] == pytest.approx(gradient[inside].sum() / gradient.sum())
    assert found["tokens"][3] == 0 and math.isnan(found["clipped"][3])


def test_curves_have_the_steps_that_all_runs_have(tmp_path):
    warm = {"step": 0, "phase": "warmstart", "eval/solved": 0.0}
    rows = [{"step": s, "phase": "rl", "eval/solved": s / 10} for s in (0, 2, 4)]
    first = write_metrics(tmp_path / "a", [warm, *rows, {"step": 5, "phase": "rl"}])
    second = write_metrics(tmp_path / "b", [warm, *rows[:2]])
    curve = read_curve([first, second], "eval/solved")
    assert curve.steps.tolist() == [0, 2]
    np.testing.assert_allclose(curve.values, [[0, 0.2], [0, 0.2]])
