"""An environment of tools: calls in a response are made, and their results are the next turn."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

from mmrl.data import Example
from mmrl.environments.environment import Observation, Step
from mmrl.rewards.runner import resolve
from mmrl.text.tool_calls import Family, parse_response
from mmrl.text.turns import tool_messages
from mmrl.tools import Tool, call_all, counts, tool


def tool_environment(
    example: Example, tools: Sequence[str], family: Family = "chatml"
) -> "ToolEnvironment":
    """A `ToolEnvironment` of tools that a config names by import path.

    A path leads to a `Tool`, to a function without arguments that makes one, such as
    `mmrl.tools:calculator`, or to a typed function that is to be one.
    """
    return ToolEnvironment([_tool(path) for path in tools], family)


@functools.cache
def _tool(path: str) -> Tool:
    found: Any = resolve(path, "tool")
    if isinstance(found, Tool):
        return found
    if not inspect.signature(found).parameters or found.__annotations__.get("return") is Tool:
        return found()
    return tool(found)


class ToolEnvironment:
    """Ends when a response calls no tool, or by a tool that submits the answer.

    Its answer is then the text without reasoning, or what was submitted. The metrics of a step
    count its calls by their status (`mmrl.tools.counts`).
    """

    def __init__(self, tools: Sequence[Tool], family: Family):
        self.tools, self.family = list(tools), family

    async def reset(self, example: Example) -> Observation:
        schemas = [one.schema for one in self.tools]
        return Observation(example.prompt, [*(example.tools or ()), *schemas] or None)

    async def step(self, response: str) -> Step:
        schemas = [one.schema for one in self.tools]
        parsed = parse_response(response, self.family, schemas)
        if not parsed.calls and not parsed.errors:
            return Step(done=True, answer=parsed.content)
        results = await call_all(self.tools, parsed)
        metrics = {f"tools/{name}": float(n) for name, n in counts(results).items()}
        submitted = [result.submission for result in results if result.submission is not None]
        if submitted:
            return Step(done=True, metrics=metrics, answer=submitted[0].answer)
        pairs = [(result.name, result.text) for result in results]
        return Step(tool_messages(pairs, self.family), metrics=metrics)

    async def close(self) -> None:
        pass
