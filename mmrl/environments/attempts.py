"""Any task with a verifier as an environment of several attempts, each judged."""

from collections.abc import Awaitable

from mmrl.data import Example, Sample, Status
from mmrl.environments.environment import Observation, Step
from mmrl.rewards.runner import resolve, to_result


class Attempts:
    """Ends with the first solved attempt, or after the last; in between it gives `feedback`.

    Each is judged by `reward`, an import path, as a response of its own. The episode's reward is
    that of its best attempt so far at each, times `discount` for each attempt before; with one
    attempt it is the task as it is. Metrics: `attempts/solved_first` and `solved`.
    """

    def __init__(
        self,
        example: Example,
        attempts: int = 2,
        reward: str = "mmrl.rewards.reasoning_gym:score",
        feedback: str = "That is not right. Try again.\n",
        discount: float = 1.0,
    ):
        self.example, self.left, self.feedback = example, attempts, feedback
        self.reward, self.discount = resolve(reward), discount
        self.made, self.best = 0, 0.0

    async def reset(self, example: Example) -> Observation:
        return Observation(example.prompt, example.tools)

    async def step(self, response: str) -> Step:
        sample = Sample(
            prompt=self.example.prompt,
            response=response,
            label=self.example.label,
            metadata=self.example.metadata,
            status=Status.COMPLETED,
        )
        outcome = self.reward(sample)
        result = to_result(await outcome if isinstance(outcome, Awaitable) else outcome)
        solved = result.components.get("solved", float(result.value >= 1)) >= 1
        gain = max(result.value * self.discount**self.made - self.best, 0.0)
        self.best += gain
        first = float(solved and self.made == 0)
        self.made, self.left = self.made + 1, self.left - 1
        metrics = {"attempts/solved_first": first, "solved": float(solved)}
        if solved or not self.left:
            return Step(done=True, reward=gain, metrics=metrics, answer=response)
        said = self.feedback
        return Step(
            said if isinstance(self.example.prompt, str) else [{"role": "user", "content": said}],
            reward=gain,
            metrics=metrics,
        )

    async def close(self) -> None:
        pass
