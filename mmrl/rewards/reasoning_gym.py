"""The verifiers of reasoning-gym as rewards: `mmrl.rewards.reasoning_gym:score` and two others."""

import functools
import json
import string
from typing import Any

from mmrl.data.records import Sample, Status
from mmrl.data.tasks import create_dataset


def score(sample: Sample) -> dict[str, float]:
    """Judges `sample.response` by the `score_answer` of the dataset that made the prompt.

    The answer is the text of the last <answer> element, or else the whole response, without white
    space around it. Needs the metadata that `ReasoningGymSource` gives.

    Returns: `reward` in [0, 1], with the dataset's own partial credit, and `solved`, 1 where that
    is 1.
    """
    from reasoning_gym.utils import extract_answer

    answer = extract_answer(sample.response)
    return _judge(sample, sample.response.strip() if answer is None else answer)


def solved(sample: Sample) -> dict[str, float]:
    """`score` without partial credit: `reward` is 1 for a full mark and else 0.

    Relative advantages magnify small differences, so that partial credit is exploited: where a
    palindrome of wrong letters earns 0.05 and other wrong answers 0.02, a policy learns to write
    short palindromes of wrong letters.
    """
    return dict.fromkeys(("reward", "solved"), score(sample)["solved"])


def final_word(sample: Sample) -> dict[str, float]:
    """`solved`, where the answer is the last word of a response that came to its end.

    For models that answer in sentences ("2 * 3 = 6", "The answer is True."). Punctuation around
    the word does not count; a response that was cut off is wrong.
    """
    words = sample.response.split()
    if sample.status != Status.COMPLETED or not words:
        return {"reward": 0.0, "solved": 0.0}
    solved = _judge(sample, words[-1].strip(string.punctuation.replace("-", "")))["solved"]
    return {"reward": solved, "solved": solved}


def _judge(sample: Sample, answer: str) -> dict[str, float]:
    metadata = sample.metadata
    verifier = _dataset(metadata["dataset"], json.dumps(metadata["settings"], sort_keys=True))
    reward = float(verifier.score_answer(answer, metadata["entry"]))
    return {"reward": reward, "solved": float(reward >= 1)}


@functools.cache
def _dataset(name: str, settings: str) -> Any:
    return create_dataset(name, json.loads(settings))
