"""The MiniMax-M1 recipe, all of it, on the quickstart's model: minutes on two cores.

What each part is and where it comes from is in docs/recipe.md. Continual pretraining on worked
tasks as texts, a supervised warm start, then RL: 16 off-policy rounds a rollout, lengths in stages
8 -> 10 -> 12, early truncation, a curriculum, a second task that comes in gradually, groups that
wait for the next steps, responses that are continued by the next weights, and the next rollout
drawn while the update runs. Numbers are small versions of the paper's or, where it has none, ours.
"""

from dataclasses import replace
from pathlib import Path

from mmrl import config as configs
from mmrl.data.curriculum import CurriculumConfig, DataPart
from mmrl.rollout.sampling import RepetitionStop
from mmrl.training.config import TrainConfig, WarmStartConfig
from mmrl.training.off_policy import OffPolicyConfig
from mmrl.training.optimizer import OptimizerConfig
from mmrl.training.stages import LengthStages, Stage

STEPS = 60


def get_config() -> TrainConfig:
    quickstart = configs.load(Path(__file__).with_name("quickstart.py"))
    tasks = quickstart.data.datasets
    first, general = (replace(quickstart.data, datasets={name: tasks[name]}) for name in tasks)
    return replace(
        quickstart,
        data=first,
        mixture=(DataPart(general, weight=1.0, begins=5, full=30),),
        pretraining=WarmStartConfig(
            steps=20,
            batch_size=16,
            length=128,
            documents=True,
            data=(DataPart(first, weight=2.0), DataPart(general)),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=10),
        ),
        warmstart=replace(quickstart.warmstart, data=(DataPart(quickstart.data),)),
        sampling=replace(quickstart.sampling, repetition_stop=RepetitionStop(8, 0.99)),
        length_stages=LengthStages(
            (
                Stage(8),
                Stage(10),
                Stage(12, eps_high=2.0, aggregation="combined", clip_norm=0.5),
            ),
            window=6,
            perplexity_change=0.1,
            length_share=0.7,  # five letters and the end are six of the first eight tokens
        ),
        curriculum=CurriculumConfig(high=0.9, after=16),
        off_policy=OffPolicyConfig(max_staleness=3, partial_tokens=6, overlap=True),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=32),
        evaluation=replace(
            quickstart.evaluation,
            interval=20,
            data=replace(quickstart.data, split="held_out"),
        ),
        steps=STEPS,
        updates_per_rollout=16,
    )
