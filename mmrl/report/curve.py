"""The learning curve of a run as a small SVG picture, for a README: no plotting library needed."""

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

from mmrl.errors import UserError
from mmrl.report.metrics import read_metrics

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 20, 56, HEIGHT - 48
CENTRED = 'text-anchor="middle"'

# The picture follows the viewer's light or dark setting, also inside an <img>.
_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #5d646c }
.title { font-size: 15px; font-weight: 600; fill: #1b1e22 }
.card { fill: #ffffff; stroke: #e4e4df } .grid { stroke: #eeeeea } .axis { stroke: #c9c9c3 }
.train { stroke: #1f5fc4; fill: #1f5fc4 } .evaluation { stroke: #c9540a; fill: #c9540a }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
.raw { stroke: none; opacity: 0.28 } .point { stroke: #ffffff; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #a5abb2 } .title { fill: #e9e9e6 }
  .card { fill: #181b1f; stroke: #2a2e34 } .grid { stroke: #23272c } .axis { stroke: #454b53 }
  .train { stroke: #7aaeff; fill: #7aaeff } .evaluation { stroke: #ff9b57; fill: #ff9b57 }
  .line { fill: none } .raw { stroke: none } .point { stroke: #181b1f }
}
"""


def write_learning_curve(workdir: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Writes an SVG of the RL phase: solve rate by step, in training and evaluation.

    Where the run logged no `reward/solved` it shows the mean reward. Raises `UserError` if the run
    has no RL steps.
    """
    rows = [row for row in read_metrics(workdir) if row["phase"] == "rl"]
    solved = any(row.get("reward/solved") is not None for row in rows)
    train = _points(rows, "reward/solved" if solved else "reward/mean")
    evaluation = _points(rows, "eval/solved" if solved else "eval/reward")
    if not train:
        raise UserError(f"{workdir} has no RL steps to draw a learning curve of")
    Path(path).write_text(
        _picture(
            title=Path(workdir).resolve().name,
            y_label="share solved" if solved else "mean reward",
            percent=solved,
            train=train,
            evaluation=evaluation,
        ),
        encoding="utf-8",
    )
    return Path(path)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the up to 2 * (window // 2) + 1 values around each, of those that there are."""
    reach = window // 2
    near = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(some) / len(some) for some in near]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def _points(rows: list[dict], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _picture(
    *,
    title: str,
    y_label: str,
    percent: bool,
    train: list[tuple[int, float]],
    evaluation: list[tuple[int, float]],
) -> str:
    steps = [step for step, _ in train + evaluation]
    values = [value for _, value in train + evaluation]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    low, high = (0.0, 1.0) if percent else (min(values), max(values))
    high = high if high > low else low + 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * (step - first) / (last - first)
        return x, BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    smooth = moving_average([value for _, value in train], max(3, len(train) // 20))
    average = [at(step, value) for (step, _), value in zip(train, smooth, strict=True)]
    raw = [at(*point) for point in train]
    evaluated = [at(*point) for point in evaluation]
    middle = (TOP + BOTTOM) / 2
    shapes = [
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        f'<text class="title" x="20" y="30">{html.escape(title)}</text>',
        *(_axis_y(at(first, tick)[1], tick, percent) for tick in ticks(low, high, 5)),
        *(_axis_x(at(tick, low)[0], tick) for tick in ticks(first, last, 8) if tick % 1 == 0),
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 12}" {CENTRED}>RL step</text>',
        f'<text transform="translate(18 {middle}) rotate(-90)" {CENTRED}>{y_label}</text>',
        *(f'<circle class="train raw" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in raw),
        _line("train", average),
        _line("evaluation", evaluated),
        *(
            f'<circle class="evaluation point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            for x, y in evaluated
        ),
        _key("train", "train, moving average", RIGHT - 260),
        _key("evaluation", "evaluation", RIGHT - 92) if evaluated else "",
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{html.escape(title)}: {y_label} by RL step</title><style>{_STYLE}</style>"
        + "\n".join(shapes)
        + "</svg>\n"
    )


def _axis_y(y: float, tick: float, percent: bool) -> str:
    text = f"{tick:.0%}" if percent else f"{tick:.4g}"
    return (
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _axis_x(x: float, tick: float) -> str:
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>'
        f'<text x="{x:.1f}" y="{BOTTOM + 19}" {CENTRED}>{tick:,.0f}</text>'
    )


def _line(name: str, points: list[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{name} line" points="{path}"/>'


def _key(name: str, text: str, x: float) -> str:
    return (
        f'<line class="{name} line" x1="{x}" x2="{x + 18}" y1="26" y2="26"/>'
        f'<text x="{x + 26}" y="30">{text}</text>'
    )
