"""Unit tests of model-written Python as a reward: `mmrl.rewards.code:score` and `:fraction`.

The label, which may be JSON text, is one of
    [{"input": text, "output": text}, …]    a program: what it prints to standard output for each
    {"inputs": […], "outputs": […]}         the same, as APPS and TACO write it
    ["assert f(1) == 2", …]                 MBPP's assertions, or any statements; each is a test
    "def check(candidate): …"               HumanEval's function, or statements; one test
The metadata may hold `entry_point`, the function that `check` gets; `prefix`, the code that the
prompt ends with, which the response continues or repeats; `setup`, code before each test; and
`seconds`, the time of a program's case or of all tests of a function, 5 by default.

All code runs in `mmrl.sandbox`. A program sees one input and never what is expected. Of functions,
tests run in another process than the code (`mmrl.rewards.code_judge`), so that arguments and
results must be data of built-in types or objects of the code's own classes.
"""

import json
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.data.records import Sample
from mmrl.sandbox import Limits, run_python

PROGRAM = Path(__file__).with_name("code_judge.py").read_text(encoding="utf-8")
SECONDS = 5.0
ALL_SECONDS = 40.0  # of all cases of a program; cases that are not begun by then have failed

_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")


@dataclass(frozen=True)
class Verdict:
    """How many of the tests passed; `ran` says that the code compiled and came to its end."""

    passed: int
    tests: int
    ran: bool
    timeout: bool


def score(sample: Sample) -> dict[str, float]:
    """Full marks only: `reward` and `solved` are 1 where every test passes.

    Other components: `passed`, the share of tests that passed, of a program those before its first
    failure; `ran`, 1 where the code ran to its end without an error (of a program: in its first
    case); `timeout`, 1 where time was up. Raises ValueError for a label of another form.
    """
    verdict = judge(sample, all_cases=False)
    solved = float(verdict.passed == verdict.tests)
    return _components(solved, verdict)


def fraction(sample: Sample) -> dict[str, float]:
    """`score` with partial credit: `reward` is the share of tests that passed."""
    verdict = judge(sample, all_cases=True)
    return _components(verdict.passed / verdict.tests, verdict)


def _components(reward: float, verdict: Verdict) -> dict[str, float]:
    return {
        "reward": reward,
        "solved": float(verdict.passed == verdict.tests),
        "passed": verdict.passed / verdict.tests,
        "ran": float(verdict.ran),
        "timeout": float(verdict.timeout),
    }


def judge(sample: Sample, *, all_cases: bool) -> Verdict:
    """Runs the tests of the label; with `all_cases` also those after a program's first failure."""
    label = _parsed(sample.label)
    code = extract_code(sample.response)
    seconds = float(sample.metadata.get("seconds", SECONDS))
    limits = Limits(wall_seconds=seconds, cpu_seconds=seconds)
    cases = _program_cases(label)
    if cases:
        return _judge_program(code, cases, limits, all_cases)
    tests = [label] if isinstance(label, str) else label
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
        raise ValueError(f"the label must be tests as {__name__} says, got {sample.label!r:.200}")
    return _judge_functions(code, tests, sample.metadata, limits)


def extract_code(response: str) -> str:
    """The last fenced block of Python after the reasoning, or else the last block, or all.

    A block that is not closed ends where the response does.
    """
    answer = response.rpartition("</think>")[2]
    blocks = [(match[1].strip().lower(), match[2]) for match in _FENCE.finditer(answer)]
    python = [code for language, code in blocks if language in _PYTHON]
    return (python or [code for _, code in blocks] or [answer])[-1]


def same_output(printed: str, expected: str) -> bool:
    """Whether the words of all lines are equal; empty lines at the end do not count."""
    ours, theirs = (
        [line.split() for line in text.rstrip().split("\n")] for text in (printed, expected)
    )
    return ours == theirs


def _parsed(label: Any) -> Any:
    if isinstance(label, str) and label.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(label)
        except ValueError:
            return label
    return label


def _program_cases(label: Any) -> list[tuple[str, str]]:
    """(input, expected output) of each case, empty if the label has none."""
    if isinstance(label, dict):
        pairs = [*zip(label.get("inputs", []), label.get("outputs", []), strict=True)]
    elif isinstance(label, list):
        both = [c for c in label if isinstance(c, dict) and c.keys() >= {"input", "output"}]
        pairs = [(case["input"], case["output"]) for case in both]
    else:
        pairs = []
    return [(_lines(given), _lines(expected)) for given, expected in pairs]


def _lines(text: str | list[str]) -> str:
    """APPS has some inputs and outputs as lists of lines."""
    return "\n".join(text) if isinstance(text, list) else text


def _judge_program(
    code: str, cases: list[tuple[str, str]], limits: Limits, all_cases: bool
) -> Verdict:
    begun = time.monotonic()
    passed, ran, timeout = 0, False, False
    for index, (given, expected) in enumerate(cases):
        if time.monotonic() - begun > ALL_SECONDS:
            return Verdict(passed, len(cases), ran, True)
        execution = run_python(code, stdin=given, limits=limits)
        ended = execution.status == "ok"
        right = ended and same_output(execution.stdout, expected)
        passed += right
        ran = ended if index == 0 else ran
        timeout |= execution.status == "timeout"
        if not right and not all_cases:
            break
    return Verdict(passed, len(cases), ran, timeout)


def _judge_functions(
    code: str, tests: list[str], metadata: dict[str, Any], limits: Limits
) -> Verdict:
    mark = secrets.token_hex(16)
    request = {
        "mark": mark,
        "program": PROGRAM,
        "code": code,
        "prefix": metadata.get("prefix", ""),
        "setup": metadata.get("setup", ""),
        "tests": tests,
        "entry_point": metadata.get("entry_point"),
    }
    execution = run_python(PROGRAM, stdin=json.dumps(request), limits=limits)
    words = [line.split() for line in execution.stdout.split("\n")]
    marked = {line[1] for line in words if len(line) == 2 and line[0] == mark}
    return Verdict(
        passed=sum(str(index) in marked for index in range(len(tests))),
        tests=len(tests),
        ran="loaded" in marked,
        timeout=execution.status == "timeout",
    )
