"""Rows of responses to figures: per task and in total, with intervals, and against a baseline."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrl.errors import UserError
from mmrl.evaluation.estimators import Estimate, bootstrap, paired_bootstrap, pass_at_k
from mmrl.evaluation.responses import Row

TOTAL = "total"
Key = tuple[str, int]  # task, problem


@dataclass(frozen=True)
class Summary:
    """Figures of one task: `figures` by name (avg@n, pass@k, reward), each with its interval.

    `gains` are differences to the baseline, of the same names; empty without one.
    `tokens` is the mean length of a response, `truncated` and `failed` are shares of responses.
    """

    task: str
    problems: int
    samples: int
    figures: dict[str, Estimate]
    gains: dict[str, Estimate]
    tokens: float
    truncated: float
    failed: float


def summarise(
    rows: Sequence[Row], ks: Sequence[int], baseline: Sequence[Row] = ()
) -> list[Summary]:
    """A summary for each task, and one of all problems together where there are several tasks.

    With `baseline`, rows of an earlier evaluation that has all of these problems, gains as well.
    Raises UserError where it lacks one, or where problems do not have k responses each.
    """
    ours = _by_problem(rows)
    theirs = _matching(ours, _by_problem(baseline)) if baseline else {}
    tasks = list(dict.fromkeys(task for task, _ in ours))
    summaries = [
        _summary(task, [key for key in ours if key[0] == task], ours, theirs, ks) for task in tasks
    ]
    return summaries + ([_summary(TOTAL, list(ours), ours, theirs, ks)] if len(tasks) > 1 else [])


def read_rows(path: Path) -> list[Row]:
    """Rows that an evaluation wrote with --output. Raises UserError naming the line."""
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"no baseline {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({name: row[name] for name in ("task", "problem", "prompt")} | row)
            float(row["solved"]), float(row["reward"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: not a row that mmrl.evaluate --output wrote: {error!r}"
            ) from error
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def table(summaries: Sequence[Summary]) -> str:
    """Aligned columns for the terminal."""
    names = list(summaries[0].figures)
    header = ["task", "problems", "n", *names, "tokens", "truncated"]
    gains = list(summaries[0].gains)
    lines = [header + [f"gain of {name}" for name in gains]]
    for summary in summaries:
        lines.append(
            [summary.task, str(summary.problems), str(summary.samples)]
            + [_interval(summary.figures[name]) for name in names]
            + [f"{summary.tokens:.1f}", f"{summary.truncated:.1%}"]
            + [_interval(summary.gains[name], sign="+") for name in gains]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _interval(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (f"{x:{sign}.3f}" for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _by_problem(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row["task"], row["problem"]), []).append(row)
    return found


def _matching(ours: dict[Key, list[Row]], theirs: dict[Key, list[Row]]) -> dict[Key, list[Row]]:
    for key, (row, *_) in ours.items():
        if key not in theirs or theirs[key][0]["prompt"] != row["prompt"]:
            what = "another prompt for" if key in theirs else "no"
            raise UserError(
                f"the baseline has {what} problem {key[1]} of {key[0]}: evaluate both checkpoints "
                "with the same task, settings, seed, prompt flags and at least the same limit"
            )
    return {key: theirs[key] for key in ours}


def _summary(task: str, keys: list[Key], ours, theirs, ks: Sequence[int]) -> Summary:
    mine = [ours[key] for key in keys]
    values = _values(mine, ks)
    gains = {}
    if theirs:
        before = _values([theirs[key] for key in keys], ks)
        # avg@n of the two may be over other n: the names are those of this evaluation.
        gains = {
            name: paired_bootstrap(after, old)
            for (name, after), old in zip(values.items(), before.values(), strict=True)
        }
    rows = [row for problem in mine for row in problem]
    return Summary(
        task=task,
        problems=len(keys),
        samples=len(mine[0]),
        figures={name: bootstrap(value) for name, value in values.items()},
        gains=gains,
        tokens=float(np.mean([row["tokens"] for row in rows])),
        truncated=float(np.mean([row["status"] == "truncated" for row in rows])),
        failed=float(np.mean([row["error"] is not None for row in rows])),
    )


def _values(problems: list[list[Row]], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Figures of each problem, [P] by name."""
    counts = {len(rows) for rows in problems}
    if len(counts) > 1:
        raise UserError(f"problems have {min(counts)} to {max(counts)} responses, not all as many")
    [n] = counts
    solved = np.asarray([[row["solved"] for row in rows] for rows in problems])
    reward = np.asarray([[row["reward"] for row in rows] for rows in problems])
    try:
        passed = {f"pass@{k}": pass_at_k(n, solved.sum(axis=1), k) for k in ks}
    except ValueError as error:
        raise UserError(f"{error}: sample more with --n") from error
    return {f"avg@{n}": solved.mean(axis=1), **passed, "reward": reward.mean(axis=1)}
