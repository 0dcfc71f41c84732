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
from mmrl.report.curve import write_learning_curve
from mmrl.report.metrics import PHASES, milestones, read_metrics, rollout_files

MAX_POINTS = 1500  # of one phase; longer runs are thinned evenly, evaluations always stay
MAX_ROLLOUT_STEPS = 24
MAX_ROLLOUT_BYTES = 2_000_000
MAX_TOKENS = 1500  # of one response; a longer one loses its middle
MAX_PROMPT = 20_000  # characters; likewise

_SCRIPTS = ("page.js", "charts.js", "rollouts.js")


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

    Returns {"prompts": [str], "steps": [{"step", "total", "rows"}]}; a row's prompt is an index
    into `prompts`, which the samples of a group share.
    """
    steps = _evenly(list(files), MAX_ROLLOUT_STEPS)
    prompts: dict[str, int] = {}
    sampled = []
    for step in steps:
        lines = files[step].read_bytes().splitlines()
        room = MAX_ROLLOUT_BYTES // len(steps)
        rows: list[dict[str, Any]] = []
        for line in lines:
            row = _compact(json.loads(line))
            text = row.pop("prompt")
            room -= len(json.dumps(row)) + (0 if text in prompts else len(json.dumps(text)))
            if room < 0 and rows:
                break
            rows.append(row | {"prompt": prompts.setdefault(text, len(prompts))})
        sampled.append({"step": step, "total": len(lines), "rows": rows})
    return {"prompts": list(prompts), "steps": sampled}


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    """A rollout row with short numbers; a long response loses its middle, from index `cut_at`."""
    half = MAX_TOKENS // 2
    prompt, tokens, logprobs = row["prompt"], row["response_tokens"], row["logprobs"]
    if not isinstance(prompt, str):
        prompt = json.dumps(prompt, indent=2, ensure_ascii=False)
    if len(prompt) > MAX_PROMPT:
        prompt = f"{prompt[: MAX_PROMPT // 2]} […] {prompt[-MAX_PROMPT // 2 :]}"
    compact = {
        **{name: _short(value) for name, value in row.items()},
        "prompt": prompt,
        "length": len(tokens),
        "logprobs": [None if x is None else round(x, 3) for x in logprobs],
    }
    if len(tokens) > MAX_TOKENS:
        for name in {"response_tokens", "logprobs", "mask"} & compact.keys():
            compact[name] = compact[name][:half] + compact[name][-half:]
        compact["cut_at"] = half
    if all(compact.get("mask") or [1]):
        compact.pop("mask", None)
    return compact


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
