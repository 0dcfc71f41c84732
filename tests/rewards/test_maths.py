"""Mathematical answers against a table of equal and unequal ones, from threads, without hanging."""

import subprocess
import threading

import pytest

from mmrl.data import Sample
from mmrl.rewards import maths, score
from mmrl.rewards.maths_judge import judge, label_expression, last_boxed, normalised

EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{3}{4}", r"\dfrac{6}{8}"),
    ("1/3", "0.33333333"),
    (r"-\frac{1}{2}", "-0.5"),
    ("18", "18.0"),
    (18, "18"),
    (0.25, r"\frac14"),
    ("1,234", "1234"),
    ("1234", "1{,}234"),
    ("1000000", "1 000 000"),
    (r"1\,000", "1000"),
    ("1e3", "1000"),
    (r"3 \times 10^5", "300000"),
    ("12,500 dollars", "12500"),
    (r"\$18", "18"),
    ("10", r"10\text{ cm}"),
    ("10 cm", "10"),
    (r"90^\circ", "90"),
    (r"10\%", "0.1"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("(1,2]", "(1, 2]"),
    (r"(-\infty,3)", "x<3"),
    ("x<3", r"(-\infty,3)"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("2x+2", "2(x+1)"),
    ("xy", "yx"),
    ("x=3", "3"),
    ("1+2i", "2i+1"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\ 2\end{pmatrix}"),
    ("B", r"\text{(B)}"),
    ("Monday", r"\text{monday}"),
    ("6 + 6 = 12\n#### 12", "12"),
    (r"so it is \boxed{7}", "7"),
    ("$x^2$", "x^{2}"),
]
UNEQUAL = [
    (r"\frac{1}{2}", "0.55"),
    ("1/3", "0.333"),
    ("-5", "5"),
    ("1,234", "1235"),
    (r"1\,000", "0"),
    ("1e3", "100"),
    ("(1,2]", "[1,2]"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("x<3", "x>3"),
    ("2x+2", "2x+1"),
    (r"\pi", "3.14"),
    ("Monday", "yadnoM"),
    ("B", "C"),
    ("12", ""),
    ("12", r"\frac{"),
    ("12", "1, 2"),
]


@pytest.mark.parametrize(("label", "answer"), EQUAL)
def test_an_equal_answer_in_another_form_is_solved(label, answer):
    assert judge(rf"So it is \boxed{{{answer}}}.", str(label)) == {"solved": 1.0, "format": 1.0}


@pytest.mark.parametrize(("label", "answer"), UNEQUAL)
def test_an_unequal_answer_is_not_solved(label, answer):
    assert judge(rf"So it is \boxed{{{answer}}}.", str(label))["solved"] == 0.0


@pytest.mark.parametrize(
    ("response", "label", "solved", "boxed"),
    [
        (r"\boxed{1}, no: \boxed{2}", "2", 1, 1),
        (r"\boxed{1}, no: \boxed{2}", "1", 0, 1),
        (r"\boxed{\frac{1}{\sqrt{4}}} because 3", "1/2", 1, 1),
        ("first 3, then 4, so 7", "7", 1, 0),
        ("the answer is 1,234 dollars", "1234", 1, 0),
        ("the answer is 1 234.", "1234", 1, 0),
        (r"so $\frac{1}{2}$ is the answer", "0.5", 1, 0),
        ("it is a Monday.", "Monday", 1, 0),
        ("it is a Mon", "Monday", 0, 0),
        ("The answer is (B).", "B", 1, 0),
        ("The answer is BOB", "B", 0, 0),
        (r"<think>\boxed{5}</think> it is 6", "6", 1, 0),
        (r"<think>\boxed{5}</think> it is 6", "5", 0, 0),
        (r"\boxed{5", "5", 0, 0),
    ],
)
def test_the_answer_is_the_last_boxed_or_else_the_last_expression(response, label, solved, boxed):
    assert judge(response, label) == {"solved": float(solved), "format": float(boxed)}


def test_the_last_box_is_found_through_nested_braces():
    assert last_boxed(r"\boxed{1} \boxed{a{b}{c{d}}} x") == "a{b}{c{d}}"
    assert last_boxed(r"\boxed{1} \boxed{2") == "1"
    assert last_boxed(r"\boxed{\{1,2\}}") == r"\{1,2\}"
    assert last_boxed("none") is None


def test_spellings_of_numbers_are_normalised():
    assert normalised(r"12\,345\,678") == "12345678"
    assert normalised("x + 1 000") == "x + 1000"
    assert normalised("2 apples.") == "2"
    assert normalised("1.2345 678") == "1.2345 678"
    assert label_expression("It costs 5.\n#### 1,000") == "1,000"


GARBAGE = [
    "",
    "\\",
    "\\boxed{",
    "\\boxed{\\frac{1}{0}}",
    "\\boxed{}}}}{{{",
    "{" * 5_000,
    "$" * 999,
    "(" * 3_000 + ")" * 3_000,
    "\x00\x01\ud83d\ude00",
    "\\begin{pmatrix}1 & 2",
    "1/" * 2_000,
    "٣ ٤ ½ ²",
    "\\boxed{" + "9" * 900 + "}",
    "__import__('os').system('true')",
]


def samples(responses, label="12"):
    return [Sample(response=response, label=label) for response in responses]


def test_garbage_is_wrong_and_never_an_error_also_from_many_threads():
    results = score(samples(GARBAGE) + samples([r"\boxed{12}"]), maths.score, max_workers=8)
    assert [(r.error, r.value) for r in results] == [(None, 0.0)] * len(GARBAGE) + [(None, 1.0)]
    assert results[-1].components == {"reward": 1.0, "solved": 1.0, "format": 1.0, "timeout": 0.0}


def test_an_answer_that_would_take_for_ever_is_wrong_and_the_next_is_judged(monkeypatch):
    """Towers of powers: big integers are C code that no signal interrupts."""
    monkeypatch.setattr(maths, "SECONDS", 3.0)
    towers = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{(10^{10^{10}})!}", r"\boxed{2^{2^{40}} \bmod 7}"]
    [*hard, easy] = score(samples([*towers, r"\boxed{12}"]), maths.score, timeout_seconds=60)
    assert [(result.error, result.value) for result in hard] == [(None, 0.0)] * 3
    assert easy.value == 1.0


def test_a_judge_that_is_killed_marks_its_answer_alone(monkeypatch):
    judges = maths.Judges(1)
    monkeypatch.setattr(maths, "_JUDGES", judges)
    assert maths.score(Sample(response="12", label="12"))["solved"] == 1.0
    [process] = judges._idle
    process.kill()
    process.wait()
    assert maths.score(Sample(response="12", label="12"))["timeout"] == 1.0
    assert maths.score(Sample(response="12", label="12"))["solved"] == 1.0
    judges.close()


def test_at_most_so_many_processes_run(monkeypatch):
    started, lock, start = [], threading.Lock(), maths._start

    def count() -> subprocess.Popen:
        with lock:
            started.append(None)
        return start()

    monkeypatch.setattr(maths, "_start", count)
    judges = maths.Judges(2)
    monkeypatch.setattr(maths, "_JUDGES", judges)
    results = score(samples(["12"] * 20), maths.score, max_workers=10)
    assert [r.value for r in results] == [1.0] * 20 and len(started) == 2
    judges.close()


@pytest.mark.parametrize("label", [None, True, ["1"], "", "  "])
def test_a_label_without_mathematics_marks_the_sample(label):
    [result] = score(samples(["12"], label), maths.score)
    assert "label" in result.error and result.value == 0.0
