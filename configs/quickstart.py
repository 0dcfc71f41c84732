"""The main job on one machine: a small MiniMax-M1-shaped policy learns two tasks by CISPO.

Three lightning layers to one softmax layer (M1 has seven), mixture of experts, scaled post-norm.
Characters are tokens, and so is the instruction that all prompts of a task share. A short
supervised warm start, then reinforcement learning on the verifiers of reasoning-gym, full marks
only, with groups drawn again until most of them have both right and wrong answers.
"""

from mmrl.data import DataConfig
from mmrl.models import DecoderConfig
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import SamplingConfig
from mmrl.text import CharTokenizer
from mmrl.training.config import EvaluationConfig, TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig

STEPS = 500
RESIDUAL = 2.0  # alpha; DeepNorm's 8^(1/4) = 1.7 for 4 layers learns the tasks more slowly
INSTRUCTIONS = (
    "Spell this word backward (example: sun -> nus): ",
    "Your task is, given a list of letters, to form a valid palindrome.\n\n"
    "A palindrome is a phrase that reads the same forwards and backwards.\n\n"
    "If there are multiple possible answers, only respond with one of them. "
    "You must use all the letters provided.\n\n"
    "Your output should be a single string, with no spaces or punctuation.\n\n"
    "Now, form a valid palindrome using the following letters: ",
)


def get_config() -> TrainConfig:
    tokenizer = CharTokenizer(phrases=INSTRUCTIONS)
    model = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        layer_pattern=("lightning",) * 3 + ("softmax",),
        rotary_dim=8,
        num_experts=4,
        experts_per_token=2,
        load_balance_coefficient=0.001,
        postnorm=True,
        softmax_alpha=RESIDUAL,
        lightning_alpha=RESIDUAL,
        mlp_alpha=RESIDUAL,
        initializer_range=0.07,
    )
    return TrainConfig(
        model=model,
        tokenizer=tokenizer,
        data=DataConfig(
            source="reasoning_gym",
            datasets={
                "spell_backward": {"min_word_len": 3, "max_word_len": 5},
                "palindrome_generation": {"min_length": 3, "max_length": 5},
            },
            prompt_suffix="\n",
        ),
        warmstart=WarmStartConfig(
            steps=110,
            batch_size=16,
            length=128,
            pack=True,
            optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10),
        ),
        sampling=SamplingConfig(group_size=8, max_new_tokens=8),
        objective=ObjectiveConfig(name="cispo", entropy_coefficient=0.02),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="linear", warmup_steps=10, decay_steps=STEPS
        ),
        evaluation=EvaluationConfig(interval=50, prompts=512),
        reward="mmrl.rewards.reasoning_gym:solved",
        steps=STEPS,
        prompts_per_step=32,
        prompt_length=20,
        dynamic_sampling_rounds=3,
    )
