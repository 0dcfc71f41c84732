r"""Answers of mathematics as a reward, by math-verify: `mmrl.rewards.maths:score`.

The label is the correct answer: a number, LaTeX, a set, an interval, or GSM8K's `… #### 42`. The
response's answer is its last \boxed{}, or else its last number or expression.

Judging runs in processes of its own (`mmrl.rewards.maths_judge`), because rewards are called from
threads and an expression can keep its process busy for ever.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mmrl.data.records import Sample
from mmrl.errors import UserError

JUDGE = Path(__file__).with_name("maths_judge.py")
SECONDS = 8.0  # more than the judge's own limits need together
RESPONSE_CHARACTERS = 20_000  # the end of a response, which holds its answer


def score(sample: Sample) -> dict[str, float]:
    r"""Judges `sample.response` by `sample.label`, a number or text.

    Returns: `reward` and `solved`, 1 where the answer equals the label, `format`, 1 where the
    answer is in a \boxed{}, and `timeout`, 1 where it was too hard to compare, which is wrong.
    Raises ValueError for a label that holds no mathematics.
    """
    if isinstance(sample.label, bool) or not isinstance(sample.label, str | int | float):
        raise ValueError(f"the label must be a number or text, got {sample.label!r}")
    response = sample.response[-RESPONSE_CHARACTERS:]
    verdict = _JUDGES.ask({"response": response, "label": str(sample.label), "seconds": SECONDS})
    if verdict is None:
        return {"reward": 0.0, "solved": 0.0, "format": 0.0, "timeout": 1.0}
    if "error" in verdict:
        raise ValueError(verdict["error"])
    return {"reward": verdict["solved"], **verdict, "timeout": 0.0}


class Judges:
    """At most `size` processes that judge, one request at a time each, started when needed."""

    def __init__(self, size: int):
        self._free = threading.Semaphore(size)
        self._idle: list[subprocess.Popen] = []
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The verdict, or None where the judge ended itself: out of time or of memory."""
        with self._free:
            judge = self._idle.pop() if self._idle else _start()
            assert judge.stdin and judge.stdout
            try:
                judge.stdin.write(json.dumps(request) + "\n")
                judge.stdin.flush()
                line = judge.stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                self._idle.append(judge)
                return json.loads(line)
            judge.wait()
            return None

    def close(self) -> None:
        """Ends the idle judges; those at work end when their stdin does."""
        while self._idle:
            self._idle.pop().kill()


def _start() -> subprocess.Popen:
    # -P: this folder has a reasoning_gym.py, which must not hide the package of that name.
    judge = subprocess.Popen(
        [sys.executable, "-P", str(JUDGE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C, which asks a run to save and stop, must not end it
    )
    assert judge.stdout
    if not judge.stdout.readline():
        raise UserError(
            f"{JUDGE.name} does not start; it needs math-verify: pip install mmrl[maths]"
        )
    return judge


_JUDGES = Judges(min(8, os.cpu_count() or 1))
