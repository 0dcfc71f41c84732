"""The length of a response as a reward, in tokens.

DAPO's overlong shaping is a part of every run's reward by `TrainConfig.overlong_buffer`; `overlong`
is the same as a part of a mixture, for a limit that is not the sampler's.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from mmrl.data.records import Sample
from mmrl.rl.advantages import overlong_shaping


def overlong(sample: Sample, *, max_length: int, buffer: int) -> float:
    """0 up to max_length - buffer tokens, then linearly down to -1 (`overlong_shaping`)."""
    return float(
        overlong_shaping(jnp.asarray(sample.response_length), max_length=max_length, buffer=buffer)
    )


def budget(sample: Sample, *, tokens: int | Mapping[str, int]) -> float:
    """1 for a response of at most `tokens` tokens, linearly down to 0 at twice as many.

    `tokens` may be {mode: tokens}; metadata's "mode" then says which holds. Raises ValueError for
    another mode.
    """
    if isinstance(tokens, Mapping):
        mode = str(sample.metadata.get("mode"))
        if mode not in tokens:
            raise ValueError(f"metadata's mode is {mode!r}, not one of {', '.join(tokens)}")
        tokens = tokens[mode]
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    return min(1.0, max(0.0, 2.0 - sample.response_length / tokens))
