"""`report.html`: a run's curves and a browsable sample of its rollouts in one self-contained page.

The page needs no network: styles, scripts and data are inline. Data travel as JSON in which `<`,
`>` and `&` are escaped, and the scripts put text on the page only as text, so that nothing a model
or a data set says can become markup.
"""

import html
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from absl import flags

from mmrl.config import run
from mmrl.data.records import Status
from mmrl.report.curve import write_learning_curve
from mmrl.report.metrics import PHASES, milestones, read_metrics, rollout_files
from mmrl.report.trajectories import segments, shown_prompt

MAX_POINTS = 1500  # of one phase; longer runs are thinned evenly, evaluations always stay
MAX_ROLLOUT_STEPS = 24
MIN_ROLLOUT_STEPS = 6  # however long the rollouts are
ROLLOUTS_OF_A_STEP = 4  # that long ones should leave room for, by fewer steps
MAX_ROLLOUT_BYTES = 2_000_000

_SCRIPTS = ("page.js", "charts.js", "trajectory.js", "rollouts.js")


def write_report(workdir: str | os.PathLike) -> Path:
    """Builds `report.html` from metrics.jsonl and, where present, config.json and rollouts/.

    Raises `UserError` if the run has no metrics.
    """
    path = Path(workdir) / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(render(report_data(workdir)), encoding="utf-8")
    partial.replace(path)
    return path


def report_data(workdir: str | os.PathLike) -> dict[str, Any]:
    """Everything that the page shows, as JSON values (assets/page.js reads it)."""
    workdir = Path(workdir)
    rows = read_metrics(workdir)
    config_file = workdir / "config.json"
    return {
        "name": workdir.resolve().name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": _short(sum(row.get("time/step_seconds") or 0.0 for row in rows)),
        "config": json.loads(config_file.read_text()) if config_file.exists() else {},
        "phases": {phase: _columns([r for r in rows if r["phase"] == phase]) for phase in PHASES},
        "milestones": milestones(rows),
        "statuses": [status.value for status in Status],
        "rollouts": sample_rollouts(rollout_files(workdir)),
    }


def render(data: Mapping[str, Any]) -> str:
    """The page that shows `data` (of `report_data`)."""
    assets = resources.files("mmrl.report") / "assets"
    payload = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        payload = payload.replace(character, f"\\u{ord(character):04x}")
    return Template((assets / "page.html").read_text("utf-8")).substitute(
        TITLE=html.escape(data["name"]),
        STYLE=(assets / "style.css").read_text("utf-8"),
        SCRIPT="\n".join((assets / name).read_text("utf-8") for name in _SCRIPTS),
        DATA=payload,
    )


def sample_rollouts(files: Mapping[int, Path]) -> dict[str, Any]:
    """Evenly spaced steps, and of each as many rollouts from the start of its file as fit.

    Returns {"prompts": [prompt], "steps": [{"step", "total", "rows"}]}; a row's prompt is an index
    into `prompts`, which the samples of a group share.
    """
    steps = _sampled_steps(files)
    prompts: dict[str, int] = {}
    sampled = []
    for step in steps:
        lines = files[step].read_bytes().splitlines()
        room = MAX_ROLLOUT_BYTES // len(steps)
        rows: list[dict[str, Any]] = []
        for line in lines:
            row = _compact(json.loads(line))
            text = json.dumps(row.pop("prompt"))
            room -= len(json.dumps(row)) + (0 if text in prompts else len(text))
            if room < 0 and rows:
                break
            rows.append(row | {"prompt": prompts.setdefault(text, len(prompts))})
        sampled.append({"step": step, "total": len(lines), "rows": rows})
    return {"prompts": [json.loads(text) for text in prompts], "steps": sampled}


def _sampled_steps(files: Mapping[int, Path]) -> list[int]:
    """Fewer steps where rollouts are long, as the last step's first one is."""
    lines = files[max(files)].read_bytes().splitlines() if files else []
    size = len(json.dumps(_compact(json.loads(lines[0])))) if lines else 1
    fit = max(MIN_ROLLOUT_STEPS, MAX_ROLLOUT_BYTES // (ROLLOUTS_OF_A_STEP * size))
    return _evenly(list(files), min(MAX_ROLLOUT_STEPS, fit))


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    """A rollout row with short numbers, and its tokens in segments."""
    replaced = ("response_tokens", "logprobs", "mask", "tools")
    return {
        **{name: _short(value) for name, value in row.items() if name not in replaced},
        "prompt": shown_prompt(row["prompt"], row.get("tools")),
        "length": len(row["response_tokens"]),
        "in_loss": row.get("in_loss", any(row.get("mask") or [1])),
        "segments": segments(row),
    }


def _columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    """{metric: a value a row, null where the row lacks it}, numbers only, thinned to MAX_POINTS."""
    kept = set(_evenly(range(len(rows)), MAX_POINTS))
    rows = [row for i, row in enumerate(rows) if i in kept or "eval/reward" in row]
    names = dict.fromkeys(
        name for row in rows for name, x in row.items() if isinstance(x, int | float)
    )
    return {name: [_short(row.get(name)) for row in rows] for name in {"step": None} | names}


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _short(value: Any) -> Any:
    """Floats to five significant digits, which is more than a curve shows."""
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _CURVE = flags.DEFINE_string("curve", None, "Also write the learning curve to this SVG file.")

    def main(argv: list[str]) -> None:
        """Regenerates the report of a run."""
        print(write_report(_WORKDIR.value))
        if _CURVE.value:
            print(write_learning_curve(_WORKDIR.value, _CURVE.value))

    run(main)
