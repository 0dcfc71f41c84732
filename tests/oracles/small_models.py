"""Small models whose parameters are large enough that every part of them matters."""

from mmrl.models import minimax_m1

HYBRID = minimax_m1(
    vocab_size=37,
    hidden_size=24,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=16,
    layer_pattern=("lightning", "lightning", "lightning", "softmax"),
    rope_theta=1000.0,
    rotary_dim=4,
    num_experts=4,
    load_balance_coefficient=0.0,
    norm_eps=1e-6,
    initializer_range=0.2,
    param_dtype="float32",
    dtype="float32",
    remat="none",
)
