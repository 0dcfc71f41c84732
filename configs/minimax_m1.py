"""MiniMax-M1 in full (456B parameters, 45.9B active) with the recipe its paper states.

Stated in arXiv 2506.13585: CISPO without a lower bound and without KL, 16 off-policy updates a
rollout, AdamW 0.9 / 0.95 / 1e-15, a float32 head, responses of at most 40K tokens in the first
stage and 80K in the last, ended early after 3,000 tokens of a probability above 0.99, late stages
with a lower eps_high and clip. Not stated, so ours to choose: learning rate, batch and group size,
all values of eps_high and clip. It needs a pod, the released weights and their tokenizer; its model
is what parameter counts and compile-only plans read.
"""

from mmrl.data import DataConfig
from mmrl.models import minimax_m1
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import SamplingConfig
from mmrl.rollout.sampling import RepetitionStop
from mmrl.sharding import MeshConfig
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import OptimizerConfig
from mmrl.training.stages import M1_LENGTHS, LengthStages, Stage


def get_config() -> TrainConfig:
    return TrainConfig(
        # In bfloat16 a weight of 0.02 cannot move by less than 6e-5, sixty times the learning rate.
        model=minimax_m1(param_dtype="float32"),
        data=DataConfig(source="reasoning_gym"),
        sampling=SamplingConfig(
            group_size=16,
            max_new_tokens=40_960,
            temperature=1.0,
            repetition_stop=RepetitionStop(tokens=3000, probability=0.99),
        ),
        objective=ObjectiveConfig(name="cispo", eps_high=4.0, eps_low=None),
        optimizer=OptimizerConfig(learning_rate=1e-6, b1=0.9, b2=0.95, eps=1e-15),
        length_stages=LengthStages(
            (
                *(Stage(length) for length in M1_LENGTHS[:3]),
                # Against the collapse of late stages; by how much is not stated.
                *(
                    Stage(length, eps_high=2.0, aggregation="combined", clip_norm=0.5)
                    for length in M1_LENGTHS[3:]
                ),
            )
        ),
        mesh=MeshConfig(data=1, fsdp=4, expert=16, tensor=8),
        steps=1000,
        prompts_per_step=512,
        prompt_length=2048,
        updates_per_rollout=16,
        micro_batches=8,
    )
