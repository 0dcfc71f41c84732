"""An environment of tools: calls in a response are made, and their results are the next turn."""

from collections.abc import Sequence
from typing import Any

from mmrl.data import Example
from mmrl.environments.environment import Observation, Step
from mmrl.text.tool_calls import Family, parse_response
from mmrl.text.turns import tool_messages
from mmrl.tools import Tool, call_all, counts


class ToolEnvironment:
    """Ends when a response calls no tool, or by a tool that submits the answer.

    `answer` is then the text without reasoning, or what was submitted: for the reward to judge. The
    metrics of a step count its calls by their status (`mmrl.tools.counts`).
    """

    def __init__(self, tools: Sequence[Tool], family: Family):
        self.tools, self.family = list(tools), family
        self.answer: Any = None

    async def reset(self, example: Example) -> Observation:
        schemas = [tool.schema for tool in self.tools]
        return Observation(example.prompt, [*(example.tools or ()), *schemas] or None)

    async def step(self, response: str) -> Step:
        schemas = [tool.schema for tool in self.tools]
        parsed = parse_response(response, self.family, schemas)
        if not parsed.calls and not parsed.errors:
            self.answer = parsed.content
            return Step(done=True)
        results = await call_all(self.tools, parsed)
        metrics = {f"tools/{name}": float(n) for name, n in counts(results).items()}
        submitted = [result.submission for result in results if result.submission is not None]
        if submitted:
            self.answer = submitted[0].answer
            return Step(done=True, metrics=metrics)
        pairs = [(result.name, result.text) for result in results]
        return Step(tool_messages(pairs, self.family), metrics=metrics)

    async def close(self) -> None:
        pass
