"""The verifiers of reasoning-gym as rewards: `mmrl.rewards.reasoning_gym:score` and `:solved`."""

import functools
import json
from typing import Any

from mmrl.data.records import Sample
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
    if answer is None:
        answer = sample.response.strip()
    metadata = sample.metadata
    verifier = _dataset(metadata["dataset"], json.dumps(metadata["settings"], sort_keys=True))
    reward = float(verifier.score_answer(answer, metadata["entry"]))
    return {"reward": reward, "solved": float(reward >= 1)}


def solved(sample: Sample) -> dict[str, float]:
    """`score` without partial credit: `reward` is 1 for a full mark and else 0.

    Relative advantages magnify small differences, so that partial credit is exploited: where a
    palindrome of wrong letters earns 0.05 and other wrong answers 0.02, a policy learns to write
    short palindromes of wrong letters.
    """
    return dict.fromkeys(("reward", "solved"), score(sample)["solved"])


@functools.cache
def _dataset(name: str, settings: str) -> Any:
    return create_dataset(name, json.loads(settings))
