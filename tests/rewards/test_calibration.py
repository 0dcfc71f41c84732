"""A judge beside the truth: agreement, ranking and what length earns, against plain counting."""

import itertools
import json

import numpy as np
import pytest
from tiny_run import run_module

from mmrl.rewards.calibration import calibration


def drawn(seed: int, bias: float = 0.0):
    """Rewards on five grades that follow the truth with noise, and length with `bias`."""
    rng = np.random.default_rng(seed)
    right = rng.random(400) < 0.4
    lengths = rng.integers(5, 100, 400)
    said = 2 + 1.5 * right + rng.normal(size=400) + bias * (lengths - 50) / 30
    return np.clip(np.round(said), 0, 4) / 4, right, lengths, [i % 40 for i in range(400)]


def test_ranking_is_the_share_of_pairs_in_the_right_order():
    rewards, right, lengths, problems = drawn(0)
    pairs = itertools.product(rewards[right], rewards[~right])
    expected = np.mean([(good > bad) + 0.5 * (good == bad) for good, bad in pairs])
    found = calibration(rewards, right, lengths, problems)
    assert found.ranking == pytest.approx(expected)
    assert 0.6 < found.ranking < 0.95


def test_agreement_and_kappa_are_those_of_the_two_by_two_table():
    rewards, right, lengths, problems = drawn(1)
    found = calibration(rewards, right, lengths, problems, threshold=0.75)
    says = rewards >= 0.75
    a, b, c, d = ((says & right).sum(), (says & ~right).sum(), (~says & right).sum(), 0)
    d = 400 - a - b - c
    observed = (a + d) / 400
    chance = ((a + b) * (a + c) + (c + d) * (b + d)) / 400**2
    assert found.agreement == pytest.approx(observed)
    assert found.kappa == pytest.approx((observed - chance) / (1 - chance))
    assert sum(count for count, _ in found.table.values()) == 400
    assert found.table[1.0][1] == pytest.approx(right[rewards == 1.0].mean())


def test_length_bias_is_what_length_earns_beyond_the_truth():
    assert abs(calibration(*drawn(2)).length_bias) < 0.15
    assert calibration(*drawn(2, bias=1.0)).length_bias > 0.3
    rewards, right, lengths, problems = drawn(3)
    lengths = lengths + 1000 * right + 300 * np.asarray(problems)  # both true and harmless
    assert abs(calibration(rewards, right, lengths, problems).length_bias) < 0.15


def test_a_perfect_judge_and_one_that_says_always_the_same():
    _, right, lengths, problems = drawn(4)
    perfect = calibration(right * 1.0, right, lengths, problems)
    assert (perfect.agreement, perfect.kappa, perfect.ranking) == (1, 1, 1)
    same = calibration(np.ones(400), right, lengths, problems)
    assert (same.kappa, same.ranking, same.length_bias) == (0, 0.5, 0)
    assert np.isnan(calibration([1.0], [True], [3], [0]).ranking)


def test_responses_of_an_evaluation_are_judged_and_compared(tmp_path):
    rows = [
        {"task": "t", "problem": i // 2, "prompt": "p", "label": "a", "response": "ab"[i % 2],
         "tokens": 1 + i, "solved": float(i < 3), "reward": 0.0}
        for i in range(4)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = "--reward=oracles.copy_letter:score"  # right where the response is the label
    done = run_module("mmrl.calibrate", f"--responses={path}", judge, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["agreement"] == pytest.approx(3 / 4) and found["right"] == pytest.approx(3 / 4)
    assert found["table"] == {"0.0": [2, 0.5], "1.0": [2, 1.0]}
