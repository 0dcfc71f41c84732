"""Two small runs of a study as a program: python study_member.py WORKDIR DATA."""

import sys
from dataclasses import replace
from pathlib import Path

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.studies.methods import Plan, Setting, rl_config
from mmrl.studies.runs import run_all
from mmrl.training.config import TrainConfig

PLAN = Plan(
    steps=40,
    evaluation_interval=40,
    updates_per_rollout=2,
    prompts_per_step=8,
    held_out_prompts=8,
)


def configs_of(data: str) -> dict[str, TrainConfig]:
    base = configs.load(Path(__file__).parent / "configs" / "copy_letter.py")
    held_out = replace(base.evaluation.data, source=data)
    base = replace(
        base,
        model=replace(base.model, num_layers=1, layer_pattern=("softmax",), num_experts=0),
        data=replace(base.data, source=data),
        evaluation=replace(base.evaluation, data=held_out),
        checkpoint=replace(base.checkpoint, interval=5),
    )
    setting = Setting("dapo", 0.2, 0.28, 1e-2)
    runs = {
        f"seed{seed}": rl_config(base, PLAN, setting, seed=seed, warm_start=Path("none"))
        for seed in (0, 1)
    }
    return {name: replace(run, initial=None) for name, run in runs.items()}


if __name__ == "__main__":
    try:
        run_all(configs_of(sys.argv[2]), Path(sys.argv[1]), 1)
    except UserError as error:
        sys.exit(f"error: {error}")
