"""Turns the failures of served conversations into prompts for RL.

    python -m mmrl.harvest --source=runs/journal --output=harvested.jsonl
    python -m mmrl.train --config=FILE --workdir=DIR --config.data.source=harvested.jsonl \
        --config.data.input_key=prompt --config.data.label_key=label \
        --config.reward=mmrl.rewards.harvested:score

The source is a journal (`mmrl.conversations.journal`), a folder or a file; several are given by
several --source. A response failed that was rated down, earned little, was asked for again or
corrected, called tools in vain, or was cut off.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from absl import flags

from mmrl import config as configs
from mmrl.conversations.harvest import Harvest, harvest
from mmrl.conversations.read import Conversations, read_journals
from mmrl.errors import UserError, user_mistakes
from mmrl.text.tool_calls import Family

SHOWN_PROBLEMS = 5


def define_flags() -> None:
    flags.DEFINE_multi_string("source", None, "Journal to read.", required=True)
    flags.DEFINE_string("output", None, "The .jsonl file to write.", required=True)
    flags.DEFINE_float("below", 0.5, "Rewards under it are failures.")
    flags.DEFINE_bool("judge", False, "Keep prompts that only a judge can grade.")
    flags.DEFINE_float("likeness", 0.8, "Prompts at least so alike are one, from 0 to 1.")
    flags.DEFINE_enum(
        "tool_format", "chatml", get_args(Family), "How the model to train writes its calls."
    )


def check(output: Path, likeness: float) -> None:
    """Raises `UserError` for flags that cannot be."""
    if output.suffix != ".jsonl":
        raise UserError(f"--output={output} must end in .jsonl, so that mmrl.train can read it")
    if not 0 < likeness <= 1:
        raise UserError(f"--likeness must lie in (0, 1], got {likeness}")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a .jsonl file for its owner alone, which never holds half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    partial.replace(path)


def summary(conversations: Conversations, harvested: Harvest, output: Path) -> str:
    """What was read, what failed and why, and what became of it."""
    problems = conversations.problems
    skipped = [f"  skipped {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        skipped.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    lines = [
        f"read      {len(conversations.exchanges)} exchanges, feedback on "
        f"{len(conversations.feedback)}, {len(problems)} lines skipped",
        *skipped,
        f"failures  {harvested.failures}{_counts(harvested.reasons)}",
        f"merged    {harvested.duplicates.same} of the same prompt, "
        f"{harvested.duplicates.near} of nearly the same",
        f"left out  {harvested.for_judge} that only a judge can grade (--judge keeps them), "
        f"{harvested.unverifiable} with nothing to compare with",
        f"written   {len(harvested.rows)} prompts to {output}{_counts(harvested.verifiers)}",
    ]
    return "\n".join(lines)


def _counts(numbers: Mapping[str, int]) -> str:
    found = ", ".join(f"{name} {n}" for name, n in numbers.items())
    return f": {found}" if found else ""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --source=… and --output=…")
    values = flags.FLAGS
    output = Path(values.output)
    check(output, values.likeness)
    with user_mistakes():
        conversations = read_journals([Path(source) for source in values.source])
        harvested = harvest(
            conversations,
            below=values.below,
            judge=values.judge,
            likeness=values.likeness,
            tool_format=values.tool_format,
        )
        write_rows(output, harvested.rows)
    print(summary(conversations, harvested, output))


if __name__ == "__main__":
    define_flags()
    configs.run(main)
