"""The main job on one machine: a small MiniMax-M1-shaped policy learns two tasks by CISPO.

Seven lightning layers to one softmax layer, mixture of experts, post-norm with DeepNorm's scales;
characters are tokens. A short supervised warm start, then reinforcement learning on the verifiers
of reasoning-gym.
"""

from mmrl.data import CharTokenizer, DataConfig
from mmrl.models import DecoderConfig, deepnorm_alpha
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import SamplingConfig
from mmrl.training.config import EvaluationConfig, TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    tokenizer = CharTokenizer()
    alpha = deepnorm_alpha(8)
    model = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        layer_pattern=("lightning",) * 7 + ("softmax",),
        rotary_dim=8,
        num_experts=4,
        experts_per_token=2,
        load_balance_coefficient=0.001,
        postnorm=True,
        softmax_alpha=alpha,
        lightning_alpha=alpha,
        mlp_alpha=alpha,
        initializer_range=0.07,
    )
    return TrainConfig(
        model=model,
        tokenizer=tokenizer,
        data=DataConfig(
            source="reasoning_gym",
            datasets={
                "basic_arithmetic": {
                    "min_terms": 2,
                    "max_terms": 3,
                    "min_digits": 1,
                    "max_digits": 1,
                    "operators": ["+", "-"],
                    "allow_parentheses": False,
                    "allow_negation": False,
                },
                "spell_backward": {"min_word_len": 3, "max_word_len": 4},
            },
            prompt_suffix="\n",
        ),
        warmstart=WarmStartConfig(
            steps=180,
            batch_size=32,
            length=128,
            pack=True,
            optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10),
        ),
        sampling=SamplingConfig(group_size=8, max_new_tokens=6),
        objective=ObjectiveConfig(name="cispo"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10),
        evaluation=EvaluationConfig(interval=50, prompts=256),
        steps=300,
        prompts_per_step=32,
        prompt_length=56,
    )
