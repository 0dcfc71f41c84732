"""Figures of rows that are made up here, against numbers computed by hand."""

import json

import numpy as np
import pytest

from mmrl.evaluation.summary import read_rows, summarise, table

# Task, problem, solved of each response.
SOLVED = {
    ("a", 0): [1, 0, 0, 0],
    ("a", 1): [1, 1, 1, 1],
    ("a", 2): [0, 0, 0, 0],
    ("b", 0): [1, 1, 0, 0],
}


def rows(solved=SOLVED, prompt="p"):
    return [
        {
            "task": task,
            "problem": problem,
            "prompt": f"{prompt}{problem}",
            "sample": sample,
            "reward": 0.5 * value,
            "solved": float(value),
            "tokens": 10 + sample,
            "status": "truncated" if sample == 0 else "completed",
            "error": None if sample else "ValueError: bad",
        }
        for (task, problem), values in solved.items()
        for sample, value in enumerate(values)
    ]


def test_figures_are_those_of_each_task_and_of_all_problems():
    a, b, total = summarise(rows(), [1, 2, 4])
    assert (a.task, a.problems, a.samples, total.task) == ("a", 3, 4, "total")
    assert {name: e.mean for name, e in a.figures.items()} == pytest.approx(
        # pass@2 of one in four: 1 - C(3,2) / C(4,2) = 1/2.
        {"avg@4": 1.25 / 3, "pass@1": 1.25 / 3, "pass@2": 1.5 / 3, "pass@4": 2 / 3,
         "reward": 0.625 / 3}
    )  # fmt: skip
    assert b.figures["pass@2"].mean == pytest.approx(5 / 6)
    assert total.figures["avg@4"].mean == pytest.approx(1.75 / 4)
    assert total.problems == 4 and total.tokens == 11.5
    assert (total.truncated, total.failed) == (0.25, 0.25)
    assert a.figures["avg@4"].low < a.figures["avg@4"].mean < a.figures["avg@4"].high


def test_one_task_has_no_total():
    [only] = summarise([row for row in rows() if row["task"] == "a"], [1])
    assert only.task == "a" and only.gains == {}


def test_gains_are_of_the_same_problems_whatever_their_order_and_number():
    """The baseline has a problem more, other n, and its rows in another order."""
    before = {key: [0, 0] for key in SOLVED} | {("a", 1): [1, 0], ("b", 1): [1, 1]}
    a, _, total = summarise(rows(), [1], list(reversed(rows(before))))
    assert a.gains["avg@4"].mean == pytest.approx((0.25 + 0.5 + 0) / 3)
    assert total.gains["pass@1"].mean == pytest.approx((0.25 + 0.5 + 0 + 0.5) / 4)
    values = [0.25, 0.5, 0.0]
    assert min(values) <= a.gains["avg@4"].low <= np.mean(values) <= a.gains["avg@4"].high


def test_a_baseline_of_other_problems_is_refused():
    fewer = {key: value for key, value in SOLVED.items() if key != ("b", 0)}
    with pytest.raises(ValueError, match="the baseline has no problem 0 of b"):
        summarise(rows(), [1], rows(fewer))
    with pytest.raises(ValueError, match="another prompt for problem 0 of a"):
        summarise(rows(), [1], rows(prompt="q"))


def test_responses_must_suffice_and_be_as_many():
    with pytest.raises(ValueError, match=r"pass@5 needs at least 5 .*--n"):
        summarise(rows(), [5])
    with pytest.raises(ValueError, match="problems have 1 to 4 responses"):
        summarise(rows(SOLVED | {("a", 0): [1]}), [1])


def test_the_table_has_a_line_a_task_and_gains_have_signs():
    text = table(summarise(rows(), [2], rows({key: [0, 1] for key in SOLVED})))
    header, *lines = text.splitlines()
    assert header.split()[:3] == ["task", "problems", "n"] and "gain of avg@4" in header
    assert [line.split()[0] for line in lines] == ["a", "b", "total"]
    assert "0.417 [0.000, 1.000]" in lines[0] and "-0.083 [-0.500, +0.500]" in lines[0]
    assert len({line.index("[") for line in lines}) == 1


def test_rows_survive_the_file_and_other_files_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    assert read_rows(path) == rows()
    path.write_text('{"task": "a"}\n')
    with pytest.raises(ValueError, match="rows.jsonl:1: not a row"):
        read_rows(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        read_rows(path)
    with pytest.raises(ValueError, match="no baseline"):
        read_rows(tmp_path / "absent.jsonl")
