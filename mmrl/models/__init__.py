"""The decoder that every supported architecture is a config of."""

from mmrl.models.cache import Cache
from mmrl.models.config import DecoderConfig, LoraConfig, deepnorm_alpha, minimax_m1
from mmrl.models.decoder import Decoder, parameter_count
from mmrl.models.pretrained.load import config_of, load

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "LoraConfig",
    "config_of",
    "deepnorm_alpha",
    "load",
    "minimax_m1",
    "parameter_count",
]
