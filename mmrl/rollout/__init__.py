"""Rollouts: sampled on the trainer's mesh with the trainer's parameters."""

from mmrl.rollout.rollout import Rollout
from mmrl.rollout.sampler import generate, score
from mmrl.rollout.sampling import SamplingConfig

__all__ = ["Rollout", "SamplingConfig", "generate", "score"]
