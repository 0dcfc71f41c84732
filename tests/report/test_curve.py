"""The learning curve is well-formed SVG that draws the run's points where its axes say."""

import xml.etree.ElementTree as ElementTree

import pytest

from mmrl.errors import UserError
from mmrl.report.curve import moving_average, ticks, write_learning_curve
from mmrl.report.metrics import MetricsWriter

SVG = "{http://www.w3.org/2000/svg}"


def shapes(path, tag, css_class):
    found = ElementTree.parse(path).getroot().iter(f"{SVG}{tag}")
    return [shape.attrib for shape in found if shape.get("class") == css_class]


def test_points_lie_where_the_axis_labels_say(tmp_path):
    """An oracle from the picture itself: positions are interpolated between the labelled ticks."""
    values = {1: 0.0, 3: 0.25, 6: 0.5, 11: 1.0}
    with MetricsWriter(tmp_path / "a <b> & c") as writer:
        for step, value in values.items():
            writer.write(step, {"reward/solved": value, "eval/solved": value})
    path = write_learning_curve(tmp_path / "a <b> & c", tmp_path / "curve.svg")
    texts = [t for t in ElementTree.parse(path).getroot().iter(f"{SVG}text") if t.get("x")]
    rows = {t.text: float(t.get("y")) - 4 for t in texts if t.text.endswith("%")}
    columns = {int(t.text): float(t.get("x")) for t in texts if t.text.isdigit()}
    assert texts[0].text == "a <b> & c"
    (low, left), (high, right) = sorted(columns.items())[0], sorted(columns.items())[-1]
    for css_class in ("train raw", "evaluation point"):
        circles = shapes(path, "circle", css_class)
        assert len(circles) == len(values)
        for circle, (step, value) in zip(circles, values.items(), strict=True):
            x = left + (step - low) / (high - low) * (right - left)
            y = rows["0%"] + value * (rows["100%"] - rows["0%"])
            assert float(circle["cx"]) == pytest.approx(x, abs=0.2)
            assert float(circle["cy"]) == pytest.approx(y, abs=0.2)


def test_reward_is_drawn_where_nothing_counts_as_solved(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 4):
            writer.write(step, {"reward/mean": -2.0 * step})
    path = write_learning_curve(tmp_path, tmp_path / "curve.svg")
    assert len(shapes(path, "circle", "train raw")) == 3
    assert "mean reward" in path.read_text()


def test_single_step_is_drawn_and_a_run_without_rl_is_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss/supervised": 0.5}, "warmstart")
        with pytest.raises(UserError, match="no RL steps"):
            write_learning_curve(tmp_path, tmp_path / "curve.svg")
        writer.write(1, {"reward/mean": 0.5})
    path = write_learning_curve(tmp_path, tmp_path / "curve.svg")
    assert len(shapes(path, "circle", "train raw")) == 1


def test_moving_average_is_the_mean_of_the_window_that_exists():
    assert moving_average([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
    assert moving_average([1.0, 5.0], 1) == [1.0, 5.0]
    assert moving_average([4.0] * 7, 5) == [4.0] * 7


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 12.0, [0, 5, 10]),
        (120.0, 480.0, [200, 300, 400]),
        (1e-5, 6e-5, [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)
