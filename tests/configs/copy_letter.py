"""A task so small that a run takes seconds: answer a letter with the same letter."""

from mmrl.data import DataConfig
from mmrl.models import DecoderConfig
from mmrl.rollout import SamplingConfig
from mmrl.text import CharTokenizer
from mmrl.training.checkpoint import CheckpointConfig
from mmrl.training.config import EvaluationConfig, TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    tokenizer = CharTokenizer(alphabet="abcd>")
    return TrainConfig(
        tokenizer=tokenizer,
        model=DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            intermediate_size=16,
            layer_pattern=("lightning", "softmax"),
            num_experts=2,
            experts_per_token=1,
            postnorm=True,
            initializer_range=0.2,
        ),
        data=DataConfig(source="data.jsonl", input_key="prompt", label_key="label"),
        reward="oracles.copy_letter:score",
        warmstart=WarmStartConfig(
            steps=2, batch_size=8, length=6, optimizer=OptimizerConfig(learning_rate=1e-3)
        ),
        evaluation=EvaluationConfig(
            interval=4,
            prompts=64,
            data=DataConfig(
                source="data.jsonl", input_key="prompt", label_key="label", shuffle=False
            ),
        ),
        checkpoint=CheckpointConfig(interval=2, keep=2),
        sampling=SamplingConfig(group_size=8, max_new_tokens=2),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        steps=6,
        prompts_per_step=8,
        prompt_length=3,
        updates_per_rollout=2,
        rollouts_interval=3,
    )
