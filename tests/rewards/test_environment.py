"""Rewards of episodes: the environment's, and another's of the answer."""

import pytest

from mmrl.data import Sample
from mmrl.rewards.environment import answer, score


def sample(reward, **metadata) -> Sample:
    return Sample(response="all that was said", reward=reward, metadata={"metrics": {}} | metadata)


def test_the_environments_reward_counts_and_its_own_word_on_solved():
    assert score(sample(0.5)) == {"reward": 0.5, "solved": 0.0}
    assert score(sample(2.0)) == {"reward": 2.0, "solved": 1.0}
    assert score(sample(0.5, metrics={"solved": 1.0})) == {"reward": 0.5, "solved": 1.0}
    with pytest.raises(ValueError, match="config.environment"):
        score(sample(None))


def test_another_reward_judges_the_answer_in_place_of_all_that_was_said():
    given = sample(0.0, answer="ab")
    given.label = "ab"
    path = "rewards.letters_judge:of_answer"
    assert answer(given, path) == {"reward": 1.0, "solved": 1.0}
    given.metadata["answer"] = None
    assert answer(given, path) == {"reward": 0.0, "solved": 0.0}
