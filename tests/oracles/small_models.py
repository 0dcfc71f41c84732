"""Small models whose parameters are large enough that every part of them matters."""

from mmrl.models import DecoderConfig, deepnorm_alpha

ALPHA = deepnorm_alpha(8)
HYBRID = DecoderConfig(
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
    experts_per_token=2,
    postnorm=True,
    softmax_alpha=ALPHA,
    lightning_alpha=ALPHA,
    mlp_alpha=ALPHA,
    initializer_range=0.2,
)
