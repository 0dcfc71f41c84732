"""What the ending of a response counts in training, by the rules of `EpisodeConfig.statuses`."""

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.data import Status
from mmrl.environments import EpisodeConfig


def by_status(
    values: np.ndarray, status: np.ndarray, episodes: EpisodeConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [P, G] by the rules of their endings, and which samples the loss is of."""
    trained = np.ones(status.shape, bool)
    for ending in Status:
        rule, here = episodes.rule(ending), status == int(ending)
        trained[here] = rule.counts == "loss"
        if rule.reward is not None:
            values = np.where(here, np.float32(rule.reward), values)
    return values, trained


def compared(status: jax.Array, episodes: EpisodeConfig) -> jax.Array:
    """Which samples count in the mean of their group, [P, G] bool."""
    left_out = [int(s) for s in Status if episodes.rule(s).counts == "nothing"]
    return ~jnp.isin(status, jnp.asarray(left_out))
