"""One model, two modes: the quickstart's policy learns to be brief when it is asked.

Continues from the run of configs/quickstart.py, by default runs/quickstart; --config.initial names
another. A short warm start teaches to answer at once or to write a draft first: with the tag of
"pro" always the draft, with that of "lightning" one or the other by turns. RL then mixes both
modes: a right answer counts in "pro" after a draft only. The limit of tokens is the same, so that
lightning's answers become brief by the length-aware reward alone. In metrics.jsonl eval/lightning/*
and eval/pro/* compare them on the same held-out prompts.
"""

from dataclasses import replace
from pathlib import Path

from mmrl import config as configs
from mmrl.rollout.modes import ModeConfig
from mmrl.training.config import TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig

WARM_STEPS, STEPS = 600, 150
TOKENS = 32  # of a response; a draft and an answer of five letters have 29
ANSWER, DRAFT = "{label}", "{label}\n<answer>{label}</answer>"


def get_config() -> TrainConfig:
    quickstart = configs.load(Path(__file__).with_name("quickstart.py"))
    return replace(
        quickstart,
        initial="runs/quickstart",
        modes={
            "lightning": ModeConfig.of(
                "lightning",
                tag="lightning: ",
                max_new_tokens=TOKENS,
                length_penalty=0.5,
                solutions=(ANSWER, DRAFT),
            ),
            "pro": ModeConfig.of(
                "pro",
                tag="pro: ",
                max_new_tokens=TOKENS,
                form=r"\w+\n<answer>\w+</answer>",
                solutions=(DRAFT,),
            ),
        },
        warmstart=WarmStartConfig(
            steps=WARM_STEPS,
            batch_size=16,
            length=128,
            pack=True,
            optimizer=OptimizerConfig(
                learning_rate=3e-3, schedule="linear", warmup_steps=10, decay_steps=WARM_STEPS
            ),
        ),
        sampling=replace(quickstart.sampling, max_new_tokens=TOKENS),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, schedule="linear", warmup_steps=10, decay_steps=STEPS
        ),
        steps=STEPS,
        prompt_length=quickstart.prompt_length + len("lightning: "),
    )
