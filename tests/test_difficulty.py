"""The difficulty filter: rows between the bounds, by an evaluation's responses."""

import json

import pytest
from tiny_run import run_module

from mmrl import difficulty
from mmrl.errors import UserError


def test_rows_strictly_between_the_bounds_are_kept(tmp_path):
    source, responses, output = (tmp_path / f"{name}.jsonl" for name in ("data", "rows", "kept"))
    data = [{"input": f"p{i}", "label": i, "more": [i]} for i in range(5)]
    source.write_text("".join(json.dumps(row) + "\n" for row in data))
    right = {0: 0, 1: 1, 2: 8, 3: 9}  # of ten; row 4 was not asked
    rows = [
        {
            "task": "data",
            "problem": p,
            "prompt": f"p{p}",
            "solved": float(n < right[p]),
            "reward": 0,
        }
        for p in right
        for n in range(10)
    ]
    rows.append(rows[0] | {"solved": 1.0, "error": "TimeoutError"})
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = dict(source=source, responses=responses, output=output)
    done = run_module("mmrl.difficulty", *(f"--{name}={path}" for name, path in files.items()))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in output.read_text().splitlines()] == data[1:3]
    assert "2 of 5 rows kept" in done.stdout


def test_responses_to_rows_that_are_not_there_are_an_error():
    with pytest.raises(UserError, match="problem 3 and the source has 2 rows"):
        difficulty.select([{}, {}], {3: 0.5}, 0.0, 0.9)
