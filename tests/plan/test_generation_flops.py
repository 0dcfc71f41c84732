"""M1 over R1 by convention, against the reference's values for each."""

import pytest

from mmrl.plan.generation_flops import FIGURE, LENGTHS, conventions

# Ratios read off the figure's vector data and derived by hand for each other convention.
EXPECTED = {
    "figure": {"32K": 0.584, "64K": 0.385, "100,000": 0.292, "128K": 0.244},
    "causal": {"64K": 0.445, "100,000": 0.344, "128K": 0.290},
    "full square": {"64K": 0.282, "100,000": 0.217},
    "marginal": {"100,000": 0.222},
    "absorbed": {"100,000": 0.120},
}
BY_NAME = {convention.name: convention for convention in conventions()}


@pytest.mark.parametrize("name, length", [(n, k) for n, row in EXPECTED.items() for k in row])
def test_each_convention_gives_its_ratio(name, length):
    ratio = BY_NAME[name].ratio(LENGTHS[length])
    assert ratio == pytest.approx(EXPECTED[name][length], abs=6e-4)


def test_the_papers_words_hold_of_its_figure_as_far_as_they_do():
    assert BY_NAME["figure"].ratio(65_536) < 0.5
    assert 0.25 < BY_NAME["figure"].ratio(100_000) < 0.30
    for name in ("full square", "marginal"):
        assert 0.20 < BY_NAME[name].ratio(100_000) < 0.25


def test_marginal_flops_of_token_100_000_are_those_of_the_reference():
    marginal = BY_NAME["marginal"]
    assert marginal.m1(100_000) == pytest.approx(1.271e11, rel=5e-3)
    assert marginal.r1(100_000) == pytest.approx(5.730e11, rel=1e-3)


def test_the_slope_of_the_figure_is_its_next_token():
    slope, figure = BY_NAME["figure, slope"], BY_NAME["figure"]
    for of in ("m1", "r1"):
        total, one = getattr(figure, of), getattr(slope, of)
        assert one(50_000) == pytest.approx((total(50_001) - total(49_999)) / 2, rel=1e-6)


def test_the_figures_square_terms_are_those_of_its_rule():
    # heads x (d_qk + 2 d_v) x layers: exact for R1 and Qwen3, M1's is that of 8 layers.
    squares = {name: square for name, (_, square) in FIGURE.items()}
    assert squares["DeepSeek-R1"] == pytest.approx(61 * 128 * (192 + 256), rel=1e-4)
    assert squares["Qwen3-235B-A22B"] == pytest.approx(94 * 64 * (128 + 256), rel=1e-4)
    assert squares["MiniMax-M1"] == pytest.approx(8 * 64 * (128 + 256), rel=1e-3)
    rule = BY_NAME["figure's rule"]
    for n in LENGTHS.values():
        assert rule.ratio(n) == pytest.approx(BY_NAME["figure"].ratio(n), rel=0.07)
