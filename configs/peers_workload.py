"""Workload A of docs/performance.md as a run, to be planned for a slice that is not there.

python -m mmrl.plan --config=configs/peers_workload.py --topology=h100:1
"""

from mmrl.benchmark.workload import QWEN2, WORKLOADS
from mmrl.data import DataConfig
from mmrl.rollout import SamplingConfig
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    workload = WORKLOADS["A"]
    return TrainConfig(
        model=QWEN2,
        data=DataConfig(source="reasoning_gym"),
        sampling=SamplingConfig(group_size=workload.samples, max_new_tokens=workload.new_tokens),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        steps=6,
        prompts_per_step=workload.prompts,
        prompt_length=workload.prompt_length,
        micro_batches=workload.micro_batches,
    )
