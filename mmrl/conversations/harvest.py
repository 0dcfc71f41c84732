"""From journals to prompts for RL: which responses failed, and what to compare the next ones with.

A row is one of `mmrl.data`'s, with `prompt`, `label`, `metadata` and `tools`. The metadata:
    verifier     import path of its reward, see `mmrl.rewards.harvested`
    reasons      why it counts as a failure, of `REASONS`
    exchanges    the ids of the failed exchanges, the first one's prompt stands for all
    tools        for the verifier, and `tool_format`, how the model to train writes its calls
"""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.conversations.duplicates import Duplicates, without_duplicates
from mmrl.conversations.journal import Exchange
from mmrl.conversations.links import Link, links
from mmrl.conversations.read import Conversations, Feedback
from mmrl.conversations.redact import redact
from mmrl.conversations.references import reference
from mmrl.rewards.harvested import JUDGED
from mmrl.text.tool_calls import Family

REASONS = ("thumbs_down", "low_reward", "retry", "correction", "tool_error", "truncated")
_PLACEHOLDER = "[REDACTED:"
_FOLLOWED = ("retry", "correction", "tool_error")
_SHOWN = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


@dataclass(frozen=True)
class Harvest:
    """The rows, and how many there were on the way.

    reasons       failed exchanges by reason; one may have several
    failures      failed exchanges
    unverifiable  of them, those that nothing can be compared with
    for_judge     of them, those that were left out because only a judge could grade them
    duplicates    of them, those that another row stands for
    """

    rows: list[dict[str, Any]]
    failures: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    unverifiable: int = 0
    for_judge: int = 0
    duplicates: Duplicates = Duplicates()

    @property
    def verifiers(self) -> dict[str, int]:
        """How many rows each verifier judges."""
        return dict(collections.Counter(row["metadata"]["verifier"] for row in self.rows))


def harvest(
    conversations: Conversations,
    *,
    below: float = 0.5,
    judge: bool = False,
    likeness: float = 0.8,
    tool_format: Family = "chatml",
) -> Harvest:
    """The failures as rows, in order of time.

    below     rewards under it are failures
    judge     also keep rows that only a judge can grade
    likeness  prompts from this on are one (`mmrl.conversations.duplicates`)
    """
    following = links(conversations.exchanges)
    counted: collections.Counter[str] = collections.Counter()
    rows, failures, unverifiable, for_judge = [], 0, 0, 0
    for exchange in conversations.exchanges:
        said = conversations.feedback.get(exchange.id, Feedback())
        reasons = failure_reasons(exchange, said, following.get(exchange.id, ()), below)
        if not reasons:
            continue
        failures += 1
        counted.update(reasons)
        found = reference(exchange, following, conversations.feedback)
        if found is None or _PLACEHOLDER in json.dumps(redact(found.label)):
            unverifiable += 1  # nobody is to learn to answer with a placeholder
        elif found.verifier in JUDGED and not judge:
            for_judge += 1
        else:
            rows.append(_row(exchange, found.label, found.verifier, reasons, tool_format))
    kept, duplicates = without_duplicates(rows, likeness)
    by_reason = {reason: counted[reason] for reason in REASONS if counted[reason]}
    return Harvest(kept, failures, by_reason, unverifiable, for_judge, duplicates)


def failure_reasons(
    exchange: Exchange, said: Feedback, followed: Iterable[Link], below: float
) -> list[str]:
    """Why an exchange counts as a failure, in the order of `REASONS`; not at all if rated up."""
    if said.rating == "up":
        return []
    reward = exchange.reward if said.reward is None else said.reward
    kinds = {link.kind for link in followed}
    found = {
        "thumbs_down": said.rating == "down",
        "low_reward": reward is not None and reward < below,
        "truncated": exchange.finish_reason in ("length", "max_tokens"),
        **{kind: kind in kinds for kind in _FOLLOWED},
    }
    return [reason for reason in REASONS if found[reason]]


def _row(
    exchange: Exchange, label: Any, verifier: str, reasons: Sequence[str], tool_format: Family
) -> dict[str, Any]:
    """Redacted again: a journal may be older than the form of a secret, or not be ours."""
    metadata: dict[str, Any] = {
        "verifier": verifier,
        "reasons": list(reasons),
        "exchanges": [exchange.id],
    }
    if exchange.tools:
        metadata |= {"tools": exchange.tools, "tool_format": tool_format}
    prompt = [{k: m[k] for k in _SHOWN if m.get(k) is not None} for m in exchange.messages]
    row = {"prompt": prompt, "label": label, "metadata": metadata, "tools": exchange.tools}
    return redact(row)
