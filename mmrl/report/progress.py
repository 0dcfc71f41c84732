"""Live progress in the terminal, log lines elsewhere, and the closing table of a run."""

import logging
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from absl import logging as absl_logging
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from mmrl.report.metrics import milestones, read_metrics

_logger = logging.getLogger(__name__)
_logger.setLevel(
    logging.INFO
)  # our lines show whatever absl's --verbosity hides of other libraries

PHASE_TITLES = {"pretraining": "pretraining", "warmstart": "warm start", "rl": "RL"}


class Progress:
    """Shows a phase step by step: a live bar on a terminal, else a log line every few seconds.

    Use as a context manager and call `update` with each metrics row. A row with `eval/` metrics
    adds a line that stays. Where `primary` is false (any process but the first) it is silent.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        phase: str = "rl",
        start_step: int = 0,
        primary: bool = True,
        line_seconds: float = 15.0,
        console: Console | None = None,
    ):
        self._total = total_steps
        self._title = PHASE_TITLES[phase]
        self._primary = primary
        self._line_seconds = line_seconds
        self._console = console or Console(stderr=True)
        self._step_seconds: deque[float] = deque(maxlen=20)
        self._last_update = self._last_line = -float("inf")
        self._bar: rich_progress.Progress | None = None
        if primary and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("[bold]{task.description}"),
                rich_progress.BarColumn(bar_width=24),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[numbers]}"),
                rich_progress.TextColumn("[cyan]{task.fields[left]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(
                self._title, total=total_steps, completed=start_step, numbers="", left=""
            )

    def __enter__(self) -> Self:
        self._last_update = time.monotonic()
        if self._bar:
            before = sys.stderr
            self._bar.start()
            _redirect_absl_log(before, sys.stderr)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            before = sys.stderr
            self._bar.stop()
            _redirect_absl_log(before, sys.stderr)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the metrics of `step` (from 1; 0 is an evaluation before the first update)."""
        if not self._primary:
            return
        now = time.monotonic()
        if step > 0:
            self._step_seconds.append(now - self._last_update)
        self._last_update = now
        evaluation = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        training = {name: value for name, value in metrics.items() if name not in evaluation}
        numbers, left = describe(training), self._time_left(step)
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=numbers, left=left)
        elif now - self._last_line >= self._line_seconds or step >= self._total:
            self._last_line = now
            _logger.info("%s %d/%d  %s  %s", self._title, step, self._total, numbers, left)
        if evaluation:
            self._say(f"{self._title} {step}/{self._total}  evaluation: {describe(evaluation)}")

    def _say(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            _logger.info(line)

    def _time_left(self, step: int) -> str:
        """The median of the last steps, so that the first one's compilation counts for little."""
        if not self._step_seconds or step >= self._total:
            return ""
        seconds = round(statistics.median(self._step_seconds) * (self._total - step))
        hours, minutes = divmod(seconds // 60, 60)
        clock = (
            f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
        )
        return f"{clock} left"


def _redirect_absl_log(before: Any, after: Any) -> None:
    """Keeps absl's log above the bar: rich replaces sys.stderr while it draws."""
    handler = absl_logging.get_absl_handler().python_handler
    if handler.stream is before:
        handler.setStream(after)


def describe(metrics: Mapping[str, Any]) -> str:
    """The metrics a person watches, in one short line: "reward 0.512  solved 41%  length 96"."""
    shown = {
        "loss/supervised": "loss {:.4f}",
        "reward/mean": "reward {:.3f}",
        "reward/solved": "solved {:.0%}",
        "eval/reward": "reward {:.3f}",
        "eval/solved": "solved {:.1%}",
        "response/length_mean": "length {:.0f}",
        "eval/length_mean": "length {:.0f}",
        "throughput/tokens_per_second": "{:,.0f} tokens/s",
    }
    values = ((form, metrics.get(name)) for name, form in shown.items())
    return "  ".join(form.format(value) for form, value in values if value is not None)


def print_summary(
    workdir: str | os.PathLike, *, primary: bool = True, console: Console | None = None
) -> None:
    """Prints the run's evaluations (before, after warm start, after RL) and its report's path."""
    if not primary:
        return
    console = console or Console()
    rows = milestones(read_metrics(workdir))
    names = sorted({name for row in rows.values() for name in row if name.startswith("eval/")})
    if rows:
        table = Table("", *rows)
        for column in table.columns[1:]:
            column.justify = "right"
        for name in names:
            values = (row.get(name) for row in rows.values())
            cells = ["–" if v is None else _format(name, v) for v in values]
            table.add_row(name.removeprefix("eval/"), *cells)
        console.print(table)
    console.print(f"report: {Path(workdir) / 'report.html'}", soft_wrap=True, highlight=False)


def _format(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith("solved") else f"{value:.4g}"
