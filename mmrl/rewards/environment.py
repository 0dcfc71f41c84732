"""Rewards of episodes: the environment's own, and another reward's of the environment's answer."""

import dataclasses

from mmrl.data.records import Sample
from mmrl.rewards.runner import Outcome, resolve


def score(sample: Sample) -> dict[str, float]:
    """What the environment gave, the sum over its steps.

    `solved` is the environment's metric of this name, or else whether the reward is 1 and more.
    """
    if not isinstance(sample.reward, int | float):
        raise ValueError("the sample is of no episode: set config.environment")
    solved = sample.metadata["metrics"].get("solved", float(sample.reward >= 1))
    return {"reward": float(sample.reward), "solved": solved}


def answer(sample: Sample, reward: str = "mmrl.rewards.maths:score") -> Outcome:
    """What `reward`, an import path, says of the episode's answer in place of all that was said.

    0 for an episode that ended without one.
    """
    given = sample.metadata["answer"]
    if given is None:
        return {"reward": 0.0, "solved": 0.0}
    return resolve(reward)(dataclasses.replace(sample, response=str(given)))
