"""A reward for tests in which groups have to differ, whatever the policy has learned."""

from mmrl.data import Sample


def score(sample: Sample) -> dict[str, float]:
    """1 for responses whose tokens add up to an even number: about half of all."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    solved = float(sum(response) % 2 == 0)
    return {"reward": solved, "solved": solved}
