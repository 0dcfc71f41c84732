"""The form of a response as a reward: 1 or 0."""

from mmrl.data.records import Sample, Status

OPENING, CLOSING = "<think>", "</think>"


def think(sample: Sample, *, opened: bool = False) -> float:
    """Whether the response is <think>, reasoning, </think>, an answer, and came to its end.

    Reasoning and answer must not be empty, and each tag stands once. `opened` says that the prompt
    ends with <think>, as MiniMax-M2's does, so that the response must not open it again.
    """
    reasoning, closing, answer = sample.response.partition(CLOSING)
    before, opening, after = reasoning.partition(OPENING)
    if bool(opening) == opened or (opening and before.strip()):
        return 0.0
    body = after if opening else before
    tags_once = OPENING not in body + answer and CLOSING not in answer
    complete = closing and body.strip() and answer.strip() and sample.status == Status.COMPLETED
    return float(bool(complete) and tags_once)


def answer_tag(sample: Sample, *, tag: str = "answer") -> float:
    """Whether the response came to its end with exactly one <tag>…</tag> that is not empty."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if sample.response.count(opening) != 1 or sample.response.count(closing) != 1:
        return 0.0
    content, found, after = sample.response.partition(opening)[2].partition(closing)
    ended = found and not after.strip() and sample.status == Status.COMPLETED
    return float(bool(ended) and bool(content.strip()))
