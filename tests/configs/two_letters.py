"""Episodes so small that a run takes seconds: answer each of two letters with the same letter."""

from dataclasses import replace
from pathlib import Path

from mmrl import config as configs
from mmrl.environments import EnvironmentConfig, EpisodeConfig, EpisodeLimits
from mmrl.rl.loss import ObjectiveConfig
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    config = configs.load(Path(__file__).with_name("copy_letter.py"))
    return replace(
        config,
        environment=EnvironmentConfig("oracles.two_letters:TwoLetters"),
        episodes=EpisodeConfig(EpisodeLimits(turns=2, turn_tokens=3, tokens=9)),
        warmstart=replace(
            config.warmstart, length=12, optimizer=OptimizerConfig(learning_rate=3e-3)
        ),
        objective=ObjectiveConfig(entropy_coefficient=0.01),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        reward="mmrl.rewards.environment:score",
    )
