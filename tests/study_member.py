"""A study so small that it takes seconds, as a program: python study_member.py WORKDIR DATA."""

import sys
from dataclasses import replace
from pathlib import Path

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.studies.cispo_vs_dapo import draw, study, summary
from mmrl.studies.methods import Plan

PLAN = Plan(
    steps=40,
    learning_rates=(1e-2,),
    seeds=(0,),
    evaluation_interval=10,
    updates_per_rollout=2,
    prompts_per_step=8,
    held_out_prompts=8,
    clips={"cispo": ((None, 4.0),), "dapo": ((0.2, 0.28),)},
)


def main() -> None:
    workdir, data = Path(sys.argv[1]), sys.argv[2]
    base = configs.load(Path(__file__).parent / "configs" / "copy_letter.py")
    held_out = replace(base.evaluation.data, source=data)
    base = replace(
        base,
        data=replace(base.data, source=data),
        evaluation=replace(base.evaluation, data=held_out),
        checkpoint=replace(base.checkpoint, interval=5),
    )
    runs, results = study(base, PLAN, workdir, processes=1)
    print(summary(results))
    draw(runs, workdir / "curves.svg")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
