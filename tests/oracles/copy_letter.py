"""The reward of `tests/configs/copy_letter.py`."""


def score(sample) -> dict[str, float]:
    """1 where the response begins with the label."""
    solved = float(sample.response[:1] == sample.label)
    return {"reward": solved, "solved": solved}
