"""Qwen2.5-7B by CISPO: 8 responses of at most 4,096 tokens to each prompt.

Start from the released weights with --config.initial=DIRECTORY and a PretrainedTokenizer; with
--config.model.lora.rank=16 --config.model.param_dtype=bfloat16 adapters alone are trained.
"""

from mmrl.data import DataConfig
from mmrl.plan.presets import qwen2_5_7b
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import SamplingConfig
from mmrl.sharding import MeshConfig
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        model=qwen2_5_7b(param_dtype="float32"),
        data=DataConfig(source="reasoning_gym"),
        sampling=SamplingConfig(group_size=8, max_new_tokens=4096),
        objective=ObjectiveConfig(name="cispo"),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        mesh=MeshConfig(data=1, fsdp=-1),
        steps=200,
        prompts_per_step=64,
        prompt_length=1024,
        updates_per_rollout=1,
        micro_batches=8,
    )
