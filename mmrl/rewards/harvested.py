"""The reward of harvested prompts, each by the verifier that it names.

    python -m mmrl.train --config=… --config.data.source=harvested.jsonl \
        --config.data.input_key=prompt --config.data.label_key=label \
        --config.reward=mmrl.rewards.harvested:score

A row's metadata hold `verifier`, one of `VERIFIERS`: a file cannot name other code. A judge's
endpoint is not the file's to say either: it stands in MMRL_JUDGE_URL and MMRL_JUDGE_MODEL, its key,
if it wants one, in MMRL_JUDGE_KEY.
"""

import os
import re
from collections.abc import Awaitable, Mapping
from typing import Any

from mmrl.conversations.likeness import normalised
from mmrl.data.records import Sample, Status
from mmrl.errors import UserError
from mmrl.rewards.runner import resolve

MATHS = "mmrl.rewards.maths:score"
STATED = "mmrl.rewards.harvested:stated"
TOOL_CALLS = "mmrl.rewards.tool_calls:score"
GRADE = "mmrl.rewards.judge:grade"
COMPARE = "mmrl.rewards.judge:compare"
VERIFIERS = (TOOL_CALLS, MATHS, STATED, GRADE, COMPARE)  # the surest first
JUDGED = (GRADE, COMPARE)

Outcome = float | Mapping[str, float]


def score(sample: Sample) -> Outcome | Awaitable[Outcome]:
    """What the row's verifier says. Raises ValueError for one that is none of `VERIFIERS`."""
    path = sample.metadata.get("verifier")
    if path not in VERIFIERS:
        raise ValueError(f"the verifier {path!r} is none of {', '.join(VERIFIERS)}")
    settings = _judge() if path in JUDGED else {}
    return resolve(path)(sample, **settings)


def stated(sample: Sample) -> dict[str, float]:
    """`reward` and `solved`, 1 where a response that came to its end has the label as last words.

    Reasoning, case, white space, quotes and punctuation at the ends do not count.
    """
    answer, label = _bare(sample.response.rpartition("</think>")[2]), _bare(str(sample.label))
    right = sample.status == Status.COMPLETED and bool(label) and f" {answer}".endswith(f" {label}")
    return dict.fromkeys(("reward", "solved"), float(right))


def _bare(text: str) -> str:
    return normalised(re.sub(r"[*`\"“”]", "", text))


def _judge() -> dict[str, Any]:
    url, model = os.environ.get("MMRL_JUDGE_URL"), os.environ.get("MMRL_JUDGE_MODEL")
    if not url or not model:
        raise UserError("a prompt for a judge needs the variables MMRL_JUDGE_URL, MMRL_JUDGE_MODEL")
    key = "MMRL_JUDGE_KEY" if "MMRL_JUDGE_KEY" in os.environ else None
    return {"url": url, "model": model, "key_variable": key}
