"""A hybrid mixture of experts small enough to compile in seconds."""

from mmrl.models import DecoderConfig
from mmrl.rollout import SamplingConfig
from mmrl.sharding import MeshConfig
from mmrl.training.config import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        model=DecoderConfig(
            vocab_size=512,
            hidden_size=64,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=96,
            layer_pattern=("lightning", "softmax"),
            rotary_dim=8,
            num_experts=4,
            postnorm=True,
            remat="full",
        ),
        sampling=SamplingConfig(group_size=4, max_new_tokens=32),
        mesh=MeshConfig(data=1, fsdp=-1),
        steps=10,
        prompts_per_step=8,
        prompt_length=16,
    )
