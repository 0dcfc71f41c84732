"""The decoder that every supported architecture is a config of."""

from mmrl.models.cache import Cache
from mmrl.models.config import DecoderConfig, deepnorm_alpha, minimax_m1
from mmrl.models.decoder import Decoder, parameter_count

__all__ = ["Cache", "Decoder", "DecoderConfig", "deepnorm_alpha", "minimax_m1", "parameter_count"]
