"""An agent in minutes on a CPU: the quickstart's policy learns to work with a calculator.

Sums of three numbers are beyond a model of this size; a calculator for two numbers is not. An
episode has three turns: two calls, the second of what the first gave, and the answer. A short warm
start on worked episodes, then reinforcement learning on whether the answer is right, nothing else.
"""

from dataclasses import replace
from pathlib import Path

from mmrl import config as configs
from mmrl.data import DataConfig
from mmrl.environments import EnvironmentConfig, EpisodeConfig, EpisodeLimits
from mmrl.environments.sums import ALPHABET
from mmrl.text import CharTokenizer
from mmrl.training.config import EvaluationConfig, TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig

STEPS = 150


def get_config() -> TrainConfig:
    quickstart = configs.load(Path(__file__).with_name("quickstart.py"))
    tokenizer = CharTokenizer(alphabet=ALPHABET)
    return replace(
        quickstart,
        model=replace(quickstart.model, vocab_size=tokenizer.vocab_size),
        tokenizer=tokenizer,
        data=DataConfig(source="mmrl.environments.sums:sums", datasets={"sums": {"terms": 3}}),
        environment=EnvironmentConfig("mmrl.environments.sums:Calculator"),
        episodes=EpisodeConfig(EpisodeLimits(turns=4, turn_tokens=10, tokens=48), rows=256),
        reward="mmrl.rewards.environment:score",
        warmstart=WarmStartConfig(
            steps=100,
            batch_size=16,
            length=128,
            pack=True,
            optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10),
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="linear", warmup_steps=10, decay_steps=STEPS
        ),
        evaluation=EvaluationConfig(interval=50, prompts=256),
        steps=STEPS,
        prompt_length=12,
    )
