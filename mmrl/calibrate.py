"""Compares a judge with the truth, on responses that a verifier has judged.

    python -m mmrl.evaluate --checkpoint=DIR --task=gsm8k.jsonl --n=4 --output=responses.jsonl
    python -m mmrl.calibrate --responses=responses.jsonl --reward=mmrl.rewards.judge:grade \\
        --settings='{"url": "http://host:8000/v1", "model": "m"}'

The verifier of the evaluation is the truth; what is printed is `mmrl.rewards.calibration`'s.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from mmrl import config as configs
from mmrl.data.records import Sample
from mmrl.errors import UserError
from mmrl.evaluation.problems import parse_settings
from mmrl.evaluation.summary import read_rows
from mmrl.rewards.calibration import Calibration, calibration
from mmrl.rewards.mixture import WeightedReward, mixture
from mmrl.rewards.runner import score


def define_flags() -> None:
    flags.DEFINE_string("responses", None, "What mmrl.evaluate --output wrote.", required=True)
    flags.DEFINE_string("reward", "mmrl.rewards.judge:grade", "Import path of the judge.")
    flags.DEFINE_string("settings", "{}", "JSON: keyword arguments of the judge.")
    flags.DEFINE_float("threshold", 0.5, "A reward from here on says right.")
    flags.DEFINE_integer("workers", 16, "Calls that run at once.", lower_bound=1)
    flags.DEFINE_float("timeout_seconds", 120.0, "Time of a call.", lower_bound=0.1)
    flags.DEFINE_boolean("json", False, "Prints one JSON object in place of the table.")


def table(found: Calibration) -> str:
    """The figures in lines, then how often each reward was given to right responses."""
    lines = [
        f"{found.responses} responses, {found.right:.3f} of them right",
        f"agreement at {found.threshold:g}  {found.agreement:.3f}",
        f"Cohen's kappa     {found.kappa:.3f}",
        f"ranking           {found.ranking:.3f}",
        f"length bias       {found.length_bias:+.3f}",
        "reward  responses  right",
    ]
    for value, (count, share) in found.table.items():
        lines.append(f"{value:6.3f}  {count:9}  {share:.3f}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --responses={argv[1]}")
    rows = read_rows(Path(flags.FLAGS.responses))
    part = WeightedReward(flags.FLAGS.reward, settings=parse_settings(flags.FLAGS.settings))
    samples = [
        Sample(
            prompt=row["prompt"],
            label=row["label"],
            response=row["response"],
            response_length=row["tokens"],
        )
        for row in rows
    ]
    results = score(
        samples,
        mixture([part]),
        timeout_seconds=flags.FLAGS.timeout_seconds,
        max_workers=flags.FLAGS.workers,
    )
    judged = [(row, r) for row, r in zip(rows, results, strict=True) if r.error is None]
    if not judged:
        raise UserError(f"no response was judged, the first: {results[0].error}")
    found = calibration(
        [result.value for _, result in judged],
        [row["solved"] >= 1 for row, _ in judged],
        [row["tokens"] for row, _ in judged],
        [(row["task"], row["problem"]) for row, _ in judged],
        flags.FLAGS.threshold,
    )
    print(json.dumps(dataclasses.asdict(found)) if flags.FLAGS.json else table(found))
    if len(judged) < len(rows):
        first = next(result.error for result in results if result.error)
        print(f"{len(rows) - len(judged)} of {len(rows)} were not judged, the first: {first}")


if __name__ == "__main__":
    define_flags()
    configs.run(main)
