"""A reward for `tests/environments/test_attempts.py`."""


def judge(sample) -> dict[str, float]:
    """By the label, with half of the reward for its first letter; knows the metadata."""
    assert sample.metadata == {"kind": "letters"}
    solved = float(sample.response == sample.label)
    return {"reward": solved or 0.5 * (sample.response[:1] == sample.label[:1]), "solved": solved}


def of_answer(sample) -> dict[str, float]:
    solved = float(sample.response == sample.label)
    return {"reward": solved, "solved": solved}


def long(sample, beyond: int) -> float:
    return -float(sample.response_length > beyond)
