"""Keeps the rows of a data file that a model solves sometimes: a filter before training.

    python -m mmrl.evaluate --checkpoint=DIR --task=data.jsonl --n=10 --output=responses.jsonl
    python -m mmrl.difficulty --source=data.jsonl --responses=responses.jsonl --output=kept.jsonl

MiniMax-M1 (arXiv 2506.13585) kept problems whose pass@10 rate lies strictly between 0 and 0.9. Of
n responses that is taken as the share of right ones. During training the curriculum
(`--config.curriculum.high=0.9`) does the same by the policy's own responses.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mmrl import config as configs
from mmrl.data.files import read_rows
from mmrl.errors import UserError
from mmrl.evaluation.summary import read_rows as read_responses


def define_flags() -> None:
    flags.DEFINE_string(
        "source", None, "The .jsonl or .parquet file that was evaluated.", required=True
    )
    flags.DEFINE_string(
        "responses", None, "What mmrl.evaluate --output wrote of it.", required=True
    )
    flags.DEFINE_string("output", None, "The .jsonl file of the rows that are kept.", required=True)
    flags.DEFINE_float("low", 0.0, "A row's pass rate must be above this.")
    flags.DEFINE_float("high", 0.9, "A row's pass rate must be below this.")


def pass_rates(responses: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """{problem: share of its responses that are right}; failed rewards do not count."""
    solved: dict[int, list[float]] = {}
    for row in responses:
        if row.get("error") is None:
            solved.setdefault(row["problem"], []).append(float(row["solved"]))
    return {problem: sum(values) / len(values) for problem, values in solved.items()}


def select(rows: list[Any], rates: Mapping[int, float], low: float, high: float) -> list[Any]:
    """The rows i whose pass rate has low < rates[i] < high; rows that were not measured go too.

    Raises UserError for measurements of rows that are not there.
    """
    if rates and max(rates) >= len(rows):
        raise UserError(
            f"the responses are to problem {max(rates)} and the source has {len(rows)} rows: give "
            "the --task of the evaluation, with its slice, as --source"
        )
    return [row for i, row in enumerate(rows) if i in rates and low < rates[i] < high]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --source={argv[1]}")
    rows = [row for _, row in read_rows(flags.FLAGS.source)]
    rates = pass_rates(read_responses(Path(flags.FLAGS.responses)))
    kept = select(rows, rates, flags.FLAGS.low, flags.FLAGS.high)
    easy = sum(rate >= flags.FLAGS.high for rate in rates.values())
    hard = sum(rate <= flags.FLAGS.low for rate in rates.values())
    try:
        with open(flags.FLAGS.output, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    except OSError as error:
        raise UserError(f"--output={flags.FLAGS.output}: {error.strerror}") from error
    print(
        f"{len(kept)} of {len(rows)} rows kept in {flags.FLAGS.output}: {easy} are solved, {hard} "
        f"never, {len(rows) - len(rates)} were not measured"
    )


if __name__ == "__main__":
    define_flags()
    configs.run(main)
