"""Code as a reward: what is right passes, what is wrong fails, and what cheats fails."""

import json

import pytest

from mmrl.data import Sample
from mmrl.rewards.code import PROGRAM, extract_code, fraction, same_output, score


def sample(code, label, **metadata):
    return Sample(response=f"Here it is:\n```python\n{code}\n```\n", label=label, metadata=metadata)


def solved(code, label, **metadata):
    result = score(sample(code, label, **metadata))
    assert result["solved"] == result["reward"]
    return result["solved"] == 1


HUMANEVAL = {
    "prefix": "import math\n\n\ndef poly(xs: list, x: float):\n"
    "    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])\n\n\n"
    'def find_zero(xs: list):\n    """ x such that poly(x) = 0 """\n',
    "entry_point": "find_zero",
}
FIND_ZERO = """
def check(candidate):
    for coeffs in ([1, 2], [-6, 11, -6, 1]):
        assert math.fabs(poly(coeffs, candidate(coeffs))) < 1e-4
"""
BISECTION = """
    low, high = -100.0, 100.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        if poly(xs, low) * poly(xs, middle) > 0: low = middle
        else: high = middle
    return low
"""


@pytest.mark.parametrize(
    "code",
    [
        BISECTION,
        "def find_zero(xs: list):" + BISECTION,
        "import math\ndef find_zero(xs):\n"
        "    def poly(ys, x): return sum(y * x**i for i, y in enumerate(ys))" + BISECTION,
    ],
    ids=["continuation", "function", "without the prompt's helper"],
)
def test_humaneval_solutions_pass_whole_or_as_a_continuation(code):
    assert solved(code, FIND_ZERO, **HUMANEVAL)


def test_the_tests_use_the_helpers_of_the_prompt_and_not_those_of_the_code():
    code = "def poly(xs, x): return 0.0\ndef find_zero(xs): return 1.0"
    assert not solved(code, FIND_ZERO, **HUMANEVAL)


MBPP = [
    "assert pairs([1, 2]) == {(1, 2)}",
    "assert pairs([3]) == set()",
    "assert sorted(pairs([1, 2, 3])) == [(1, 2), (1, 3), (2, 3)]",
]
PAIRS = "import itertools\ndef pairs(x): return set(itertools.combinations(x, 2))"


def test_assertions_count_one_by_one():
    assert solved(PAIRS, MBPP) and solved(PAIRS, json.dumps(MBPP))
    half = sample("def pairs(x): return {(1, 2)} if len(x) == 2 else set()", MBPP)
    assert score(half)["reward"] == 0.0
    assert score(half)["passed"] == fraction(half)["reward"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("f = lambda: (1, [2.5, None], {'a': {3}}, b'x', 1j, True, frozenset([1]))",)
        + ("assert f() == (1, [2.5, None], {'a': {3}}, b'x', 1j, True, frozenset([1]))",),
        ("def f(): return float('nan')", "assert f() != f()"),
        ("def f(): return 10 ** 5000", "assert f() == 10 ** 5000"),
        ("def f(x): return (i for i in x)", "assert list(f([1, 2])) == [1, 2]"),
        ("def f(x): x.sort()", "x = [2, 1]\nf(x)\nassert x == [1, 2]"),
        ("def f(x): raise KeyError(x)", "try: f(1)\nexcept KeyError: pass\nelse: assert False"),
        (
            "class Pair:\n    def __init__(s, a, b): s.a, s.b = a, b\ndef f(p): return p.a + p.b",
            "assert f(Pair(1, b=2)) == 3",
        ),
        (
            "from collections import Counter\ndef f(x): return Counter(x)",
            "assert f('aa')['a'] == 2",
        ),
        ("def f(x): return x if x < 2 else f(x - 1) + f(x - 2)", "assert f(15) == 610"),
        ("def f(): print('noise'); return 1\nprint('more')\nexit(0)", "assert f() == 1"),
    ],
)
def test_values_errors_and_changes_of_arguments_come_back_as_they_are(code, test):
    assert solved(code, [test])
    assert not solved(code, [test, "assert f is None"])


def test_setup_runs_before_each_test():
    assert solved(
        "def f(x): return x", ["assert f(ONE) == ONE", "assert f(ONE) == 1"], setup="ONE = 1"
    )


FAIRY = (
    "class Fairy:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n"
)


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): return 0",
        "def f(x): exit(0)",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "def f(x):\n    import os; os._exit(0)",
        FAIRY + "def f(x): return Fairy()",
        FAIRY + "class Fake(int, Fairy): pass\ndef f(x): return Fake(0)",
        "import builtins\nbuiltins.AssertionError = type(None)\ndef f(x): return 0",
        "import builtins, operator\nbuiltins.int.__eq__ = lambda a, b: True\ndef f(x): return 0",
        "import atexit, sys\nfor i in range(9): print(i, 'loaded', 'passed')\ndef f(x): return 0",
        "import gc\nfound = [o for o in gc.get_objects() if type(o) is dict and 'tests' in o]"
        "\ndef f(x): return 42 if found else 0",
        "import sys\ndef f(x):\n    g = sys._getframe()\n    while g:\n"
        "        if 'test' in g.f_locals or 'tests' in g.f_locals: return 42\n        g = g.f_back",
        "import os\nfrom glob import glob\ndef f(x):\n    seen = ''\n    for p in "
        "[*glob('/proc/[0-9]*/cmdline'), *glob('/proc/[0-9]*/environ'), *glob('/tmp/*')]:\n"
        "        try: seen += open(p).read()\n        except Exception: pass\n"
        "    return 42 if 'f(6) == ' + '42' in seen else 0",
        "import os\ndef f(x):\n    for fd in range(3, 64):\n"
        '        try: os.write(fd, b\'{"value": 42, "args": ["tuple", [6]]}\\n\' * 3)\n'
        "        except OSError: pass\n    return 0",
        "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 0",
        "def f(x):\n    while True: pass",
        "def f(x): return f(x)",
        "def f(x): return 'a' * 10 ** 12",
        "def f(x)\n    return 42",
        "def g(x): return 42",
        "",
    ],
)
def test_wrong_and_cheating_functions_fail(code):
    label = ["assert f(7) == 49", "assert f(6) == 42"]
    result = fraction(sample(code, label, seconds=3.0))
    assert result["solved"] == 0 and result["reward"] <= 0.5
    honest_half = sample("def f(x): return 42", label)
    assert fraction(honest_half)["reward"] == 0.5
    assert solved("def f(x): return 7 * x", label)


READ_MEMORY = """
import os
def f(x):
    pid = os.getppid()
    for line in open(f"/proc/{pid}/maps"):
        low, high = (int(a, 16) for a in line.split()[0].split("-"))
        if "r" in line.split()[1] and high - low < 2**28:
            with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                memory.seek(low)
                try:
                    if b"MY-" + b"SECRET" in memory.read(high - low): return 42
                except OSError: pass
    return 0
"""


def test_the_memory_of_the_tests_cannot_be_read(monkeypatch):
    """With the program's protection taken out the same code reads it, if the system lets it."""
    label = ["assert f(6) == 42 or 'MY-SECRET' == f"]
    assert not solved(READ_MEMORY, label)
    open_program = PROGRAM.replace("    _hide_memory()\n", "")
    assert open_program != PROGRAM
    monkeypatch.setattr("mmrl.rewards.code.PROGRAM", open_program)
    if not solved(READ_MEMORY, label):
        pytest.skip("this system lets no process read another's memory")


@pytest.mark.parametrize("function", [score, fraction])
def test_what_ran_and_what_took_too_long_is_reported(function):
    label = ["assert f(1) == 1"]
    broken = function(sample("def f(x): return x x", label))
    assert broken["ran"] == 0 and broken["timeout"] == 0
    wrong = function(sample("def f(x): return 2", label))
    assert wrong["ran"] == 1 and wrong["timeout"] == 0
    slow = function(sample("def f(x):\n    while True: pass", label, seconds=2.0))
    assert slow["ran"] == 1 and slow["timeout"] == 1 and slow["reward"] == 0


SUMS = [{"input": "2\n1 2\n", "output": "3\n"}, {"input": "3\n1 2 3\n", "output": "6"}]
SUM = "n = int(input())\nprint(sum(map(int, input().split())))"


def test_programs_are_judged_by_what_they_print():
    assert solved(SUM, SUMS) and solved(SUM, json.dumps(SUMS))
    apps = {"inputs": ["2\n1 2\n", ["3", "1 2 3"]], "outputs": ["3\n", ["6"]]}
    assert solved(SUM, apps)
    assert solved("if __name__ == '__main__':\n    " + SUM.replace("\n", "\n    "), SUMS)
    half = sample("print(3)", SUMS)
    assert score(half)["reward"] == 0 and fraction(half)["reward"] == 0.5


@pytest.mark.parametrize(
    "code",
    [
        "print(3)\nprint(6)",
        "import sys\nsys.exit(0)",
        SUM + "\nraise SystemExit(1)",
        "import glob\nfor p in glob.glob('*'): print(open(p).read())",
        "while True: pass",
        "print('3'\n",
    ],
)
def test_wrong_and_failing_programs_fail(code):
    assert fraction(sample(code, SUMS, seconds=1.0))["reward"] == 0


def test_a_program_stops_at_its_first_failure_unless_a_fraction_is_asked():
    label = [{"input": "", "output": "2"}, {"input": "", "output": "1"}]
    assert score(sample("print(1)", label))["passed"] == 0
    assert fraction(sample("print(1)", label))["passed"] == 0.5


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\ntext\n```Python\nb\n```\n", "b\n"),
        ("```python\na\n```\nprints\n```\n3\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("x = 1", "x = 1"),
        ("```python\nno\n```</think>```python\nyes\n```", "yes\n"),
        ("```python\nopen = 1\n", "open = 1\n"),
        ("1. so\n   ```python\n   a\n   ```\n", "   a\n"),
    ],
)
def test_code_is_the_last_block_of_python(response, code):
    assert extract_code(response) == code


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1  2 \n\n", "1 2", True),
        ("1\r\n2\r\n", "1\n2", True),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("", "1", False),
        ("0.50", "0.5", False),
    ],
)
def test_outputs_are_compared_word_by_word(printed, expected, same):
    assert same_output(printed, expected) is same


@pytest.mark.parametrize("label", [None, 3, [], {}, [1], [{"input": "x"}], {"inputs": []}])
def test_a_label_without_tests_is_an_error(label):
    with pytest.raises(ValueError, match="label"):
        score(sample("x", label))


def test_the_judge_is_a_program_of_the_standard_library_alone():
    assert "mmrl" not in PROGRAM.replace("mmrl.rewards.code", "")
