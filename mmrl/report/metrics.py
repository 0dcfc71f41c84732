"""Metrics and rollouts of a run, on disk: `metrics.jsonl`, `rollouts/STEP.jsonl`, `tensorboard/`.

A metrics row is {"step": int, "phase": one of `PHASES`, metric: number, …}. Each phase counts
its own steps from 1; its row 0, if there is one, holds the evaluation before its first update.
Rows are in the order of training, so that a resumed run continues a prefix of the file.

A rollout row is one sample, its tokens as decoded text:
    step: int                     group: int                   index of its prompt in the step
    prompt: str or messages       label: any JSON value        what the reward compared with
    response_tokens: list[str]    logprobs: list[float]        the sampler's, one a token
    reward: float                 advantage: float             status: str, e.g. "completed"
and optionally
    mask: list[0 or 1]            1 where the model drew the token, 0 where it came back from a tool
                                  or a user: runs of 1 are the model's turns. Absent: all drawn
    in_loss: false                the whole sample left the loss; else its tokens of mask 1 count
    tools: list of schemas        that the prompt offered
    components, metrics: {name: float}                         of the reward, of the episode
    mode: str                     error: str                   why it failed
Files of older versions have a mask of zeros for a sample that left the loss.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from mmrl.errors import UserError

# Where torch is installed tensorboardX imports it, for seconds, and nothing here needs it.
_hidden = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]
try:
    from tensorboardX import SummaryWriter
finally:
    if _hidden:
        del sys.modules["torch"]

PHASES = ("pretraining", "warmstart", "rl")


class MetricsWriter:
    """Appends one row a step to `metrics.jsonl` and to TensorBoard (one TensorBoard run a phase).

    Continues after (`resume_phase`, `resume_step`): whatever a killed run wrote after its last
    checkpoint is dropped, so that the file of an interrupted run equals that of an uninterrupted
    one, times aside. Without `resume_step` the workdir's metrics and rollouts start empty.
    Where `primary` is false (any process but the first) nothing is touched.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        resume_phase: str = "rl",
        primary: bool = True,
    ):
        self._workdir = Path(workdir)
        self._start = (0, -1) if resume_step is None else (PHASES.index(resume_phase), resume_step)
        self._tensorboard: dict[str, SummaryWriter] = {}
        self._file = None
        if primary:
            self._workdir.mkdir(parents=True, exist_ok=True)
            _forget_after(self._workdir, self._start)
            self._file = (self._workdir / "metrics.jsonl").open("a")

    def write(self, step: int, metrics: Mapping[str, Any], phase: str = "rl") -> None:
        """Writes a row and flushes it; numbers may be array scalars, non-finite ones are null."""
        if self._file is None:
            return
        row = {"step": step, "phase": phase} | {k: _plain(v) for k, v in metrics.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        events = self._events(phase)
        for name, value in row.items():
            if name not in ("step", "phase") and isinstance(value, int | float):
                events.add_scalar(name, value, step)
        events.flush()

    def close(self) -> None:
        """Closes the files; idempotent."""
        if self._file is not None:
            self._file.close()
        for events in self._tensorboard.values():
            events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _events(self, phase: str) -> SummaryWriter:
        """The phase's TensorBoard run, whose events of steps that are run again are hidden."""
        if phase not in self._tensorboard:
            start_phase, start_step = self._start
            again = start_step + 1 if PHASES.index(phase) == start_phase else 0
            directory = str(self._workdir / "tensorboard" / phase)
            # The suffix keeps a restart within the same second from overwriting the file.
            self._tensorboard[phase] = SummaryWriter(
                directory, purge_step=again, filename_suffix=f".{again}"
            )
        return self._tensorboard[phase]


def write_rollouts(
    workdir: str | os.PathLike, step: int, rows: Iterable[Mapping[str, Any]]
) -> Path:
    """Writes the rollout rows of one RL step (format above) to `rollouts/STEP.jsonl`."""
    path = Path(workdir) / "rollouts" / f"{step}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for row in rows:
            file.write(json.dumps(_plain(row), allow_nan=False) + "\n")
    partial.replace(path)
    return path


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """All rows of `metrics.jsonl`; a half-written last line is left out.

    Raises `UserError` if the run has no such file or another line of it is not JSON.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no metrics.jsonl: not the directory of a run") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} has a line that is not JSON: {error.doc[:80]!r}") from error


def rollout_files(workdir: str | os.PathLike) -> dict[int, Path]:
    """{step: file} of the steps whose rollouts were kept, in order."""
    files = {int(file.stem): file for file in (Path(workdir) / "rollouts").glob("*.jsonl")}
    return dict(sorted(files.items()))


def milestones(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The evaluation rows that tell a run's story: "before", "after warm start" and "after RL"."""
    found: dict[str, Mapping[str, Any]] = {}
    warmed = False
    for row in rows:
        warmed |= row["phase"] == "warmstart" and row["step"] > 0
        if "eval/reward" not in row:
            continue
        if row["phase"] == "rl" and row["step"] > 0:
            found["after RL"] = row
        elif warmed:
            found["after warm start"] = row
        else:
            found["before"] = row
    return found


def _forget_after(workdir: Path, position: tuple[int, int]) -> None:
    """Drops metrics rows and rollouts written after `position` = (index of the phase, step)."""
    metrics, kept = workdir / "metrics.jsonl", 0
    for line in metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else ():
        if not line.endswith(b"\n"):
            break
        row = json.loads(line)
        if (PHASES.index(row["phase"]), row["step"]) > position:
            break
        kept += len(line)
    if metrics.exists():
        os.truncate(metrics, kept)
    for step, file in rollout_files(workdir).items():
        if (PHASES.index("rl"), step) > position:
            file.unlink()


def _plain(value: Any) -> Any:
    """`value` as JSON: array scalars become numbers, non-finite floats null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
