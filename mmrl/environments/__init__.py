"""What a model acts in: environments, and the episodes that it plays in them."""

from mmrl.environments.environment import Environment, Observation, Step
from mmrl.environments.episode import Episode, EpisodeLimits, episodes_rollout, play
from mmrl.environments.tool_use import ToolEnvironment

__all__ = [
    "Environment",
    "Episode",
    "EpisodeLimits",
    "Observation",
    "Step",
    "ToolEnvironment",
    "episodes_rollout",
    "play",
]
