"""Lines over logarithmic axes as a small SVG picture: no plotting library needed."""

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, _WIDTH - 130, 56, _HEIGHT - 52
_COLOURS = ("#1f5fc4", "#c9540a", "#2b8a3e", "#9c36b5", "#868e96")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #5d646c }
.title { font-size: 15px; font-weight: 600 } .grid { stroke: #d5d8dc }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
"""
Point = tuple[float, float]


def log_log_svg(
    lines: Mapping[str, Sequence[Point]], *, title: str, x_label: str, y_label: str
) -> str:
    """An SVG of named lines through points (x, y), all positive; x is marked where points are."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    ys = [y for points in lines.values() for _, y in points]
    decades = range(math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys))) + 1)
    left, right = math.log(xs[0]), max(math.log(xs[-1]), math.log(xs[0]) + 1)
    low, high = decades[0], max(decades[-1], decades[0] + 1)

    def at(x: float, y: float) -> Point:
        across = (math.log(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return _LEFT + (_RIGHT - _LEFT) * across, _BOTTOM - (_BOTTOM - _TOP) * up

    middle = (_TOP + _BOTTOM) / 2
    shapes = [
        f'<text class="title" x="20" y="30">{html.escape(title)}</text>',
        *(_mark_y(at(xs[0], 10.0**decade)[1], 10.0**decade) for decade in decades),
        *(_mark_x(at(x, 10.0**low)[0], x) for x in xs),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 12, x_label, "middle"),
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>",
    ]
    for index, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        shapes.append(_line([at(*point) for point in points], colour))
        shapes.append(_key(name, colour, _TOP + 20 * index))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="10" fill="#ffffff"/>'
        + "\n".join(shapes)
        + "</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _mark_y(y: float, value: float) -> str:
    grid = f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return grid + _text(_LEFT - 10, y + 4, f"{value:g}", "end")


def _mark_x(x: float, value: float) -> str:
    tick = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>'
    return tick + _text(x, _BOTTOM + 19, f"{value:,.0f}", "middle")


def _line(points: Sequence[Point], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    return f'<polyline class="line" stroke="{colour}" points="{path}"/>' + "".join(dots)


def _key(name: str, colour: str, y: float) -> str:
    x = _RIGHT + 14
    line = f'<line class="line" stroke="{colour}" x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}"/>'
    return line + _text(x + 24, y + 4, name, "start")
