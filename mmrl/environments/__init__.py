"""What a model acts in: environments, and the episodes that it plays in them."""

from mmrl.environments.config import (
    EnvironmentConfig,
    EpisodeConfig,
    EpisodeLimits,
    StatusRule,
    find_environment,
)
from mmrl.environments.environment import Environment, Observation, Step
from mmrl.environments.episode import Episode, episodes_rollout, play
from mmrl.environments.tool_use import ToolEnvironment

__all__ = [
    "Environment",
    "EnvironmentConfig",
    "Episode",
    "EpisodeConfig",
    "EpisodeLimits",
    "Observation",
    "StatusRule",
    "Step",
    "ToolEnvironment",
    "episodes_rollout",
    "find_environment",
    "play",
]
