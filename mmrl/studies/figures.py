"""The pictures of the studies, by matplotlib (the extra `plan`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mmrl.errors import UserError
from mmrl.studies.analysis import Curve

FIGURE = flags.DEFINE_string("figure", None, "Another place for the figure, .svg or .png.")
COLOURS = ("#1f5fc4", "#c9540a", "#3b8f3f", "#8a4fbf")


def new_figure(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure and its axes [rows, columns]. Raises `UserError` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "the study's figure needs matplotlib: pip install '.[plan]', then the same command "
            "again; finished runs are kept"
        ) from error
    matplotlib.rcParams |= {
        "svg.hashsalt": "mmrl",
        "svg.fonttype": "none",
    }  # same figure, same file
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def paths(workdir: Path) -> list[Path]:
    """Where a study's figure goes: into its workdir, and to `--figure` if that is given."""
    return [workdir / "curves.svg", *([Path(FIGURE.value)] if FIGURE.value else [])]


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=path.suffix[1:], metadata={"Date": None}, dpi=130)


def draw_curves(axes: Any, curves: Mapping[str, Curve], title: str) -> None:
    """Means over seeds with their 95% intervals, a line a name."""
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        low, high = curve.interval()
        axes.plot(curve.steps, curve.mean(), color=colour, label=name)
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set(title=title, xlabel="RL step")
    axes.legend(frameon=False)


def draw_bins(axes: Any, bins: Mapping[str, Any], edges: Sequence[float], title: str) -> None:
    """Groups of bars, one group a bin of the behaviour probability."""
    bounds = (0.0, *edges, 1.0)
    width = 0.8 / len(bins)
    for i, ((name, values), colour) in enumerate(zip(bins.items(), COLOURS, strict=False)):
        places = np.arange(len(values)) + (i - (len(bins) - 1) / 2) * width
        axes.bar(places, np.nan_to_num(values), width, color=colour, label=name)
    labels = [f"{low:g}-\n{high:g}" for low, high in zip(bounds, bounds[1:], strict=False)]
    axes.set(title=title, xlabel="behaviour probability of the token")
    axes.set_xticks(range(len(labels)), labels)
    axes.legend(frameon=False)
