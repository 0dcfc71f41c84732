"""Environments of the package verifiers, of its classic kind (0.1.14 to 0.3; 0.4 has left it out).

    data=DataConfig(source="mmrl.environments.verifiers:rows", datasets={"wordle": {}})
    environment=EnvironmentConfig("mmrl.environments.verifiers:Verifiers", {"family": "chatml"})
    reward="mmrl.rewards.environment:score"

SingleTurnEnv, MultiTurnEnv and ToolEnv and what derives from them; prompts are chat messages, so
the tokenizer needs a chat template. The rubric's reward counts, its metrics are logged. The package
asks for an older mcp than mmrl's tools do, so that it is no extra: install it after them.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.data import DataConfig, Example
from mmrl.environments.environment import Observation, Step
from mmrl.errors import UserError
from mmrl.text.tool_calls import Family, parse_response


class Rows:
    """The rows of the one environment in `config.datasets`, {name: arguments of its loader}.

    The training split is `get_dataset()`, the held-out one `get_eval_dataset()`.
    """

    def __init__(self, config: DataConfig):
        if len(config.datasets) != 1:
            raise UserError(f"datasets must name one environment, got {list(config.datasets)}")
        [(self._name, self._arguments)] = config.datasets.items()
        loaded = environment(self._name, json.dumps(self._arguments))
        held_out = config.split == "held_out"
        self._rows = loaded.get_eval_dataset() if held_out else loaded.get_dataset()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = {key: value for key, value in self._rows[int(index)].items() if value is not None}
        metadata = {"row": row, "environment": self._name, "arguments": self._arguments}
        return Example(row["prompt"], row.get("answer"), metadata | {"dataset": self._name})


rows = Rows


@functools.cache
def environment(name: str, arguments: str) -> Any:
    """The environment `name` with JSON `arguments`, loaded once in a process."""
    try:
        import verifiers
    except ImportError as error:
        raise UserError("its environments need the package: pip install 'verifiers<0.4'") from error
    try:
        loaded = verifiers.load_environment(name, **json.loads(arguments))
        classic = verifiers.MultiTurnEnv
    except AttributeError as error:
        raise UserError("verifiers 0.4 has no MultiTurnEnv: pip install 'verifiers<0.4'") from error
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"verifiers cannot load {name!r}: {error}") from error
    if not isinstance(loaded, classic):
        raise UserError(f"{name} is a {type(loaded).__name__}, which is no MultiTurnEnv")
    if loaded.rubric._get_group_reward_funcs():
        raise UserError(f"{name} rewards whole groups: its rubric cannot judge an episode alone")
    return loaded


class Verifiers:
    """An episode of an example of `rows`: env_response answers, the rubric judges its end.

    `family` is the format of the model's tool calls; None leaves responses as they are. An episode
    that one of mmrl's limits cuts is not judged by the rubric, and has the reward 0.
    """

    def __init__(self, example: Example, family: Family | None = None):
        metadata = example.metadata
        self.family = family
        self.environment = environment(metadata["environment"], json.dumps(metadata["arguments"]))
        self.state: Any = None
        self.seen: list[Any] = []  # all messages up to the model's turn

    async def reset(self, example: Example) -> Observation:
        import verifiers

        client = _client()
        self.state = await self.environment.init_state(example.metadata["row"], client, "mmrl")
        self.state["timing"].generation.start = time.time()
        changed = await self.environment.setup_state(self.state)
        self.state = self.state if changed is None else changed
        self.seen = list(await self.environment.get_prompt_messages(self.state))
        self.state["prompt"] = self.seen
        assert isinstance(self.state, verifiers.State)
        tools = [_tool(tool) for tool in self.state.get("tool_defs") or ()]
        return Observation([_plain(message) for message in self.seen], tools or None)

    async def step(self, response: str) -> Step:
        message = self._message(response)
        step = {
            "prompt": self.seen,
            "completion": [message],
            "response": None,
            "tokens": None,
            "reward": None,
            "advantage": None,
            "is_truncated": False,
            "trajectory_id": self.state["trajectory_id"],
            "extras": {},
        }
        await self.environment.add_trajectory_step(self.state, step)
        if await self.environment.is_completed(self.state):
            return await self._end()
        before = len(self.seen) + 1
        self.seen = list(await self.environment.get_prompt_messages(self.state))
        if await self.environment.is_completed(self.state):
            return await self._end()
        return Step([_plain(new) for new in self.seen[before:]])

    async def close(self) -> None:
        pass

    def _message(self, response: str) -> Any:
        from verifiers.types import AssistantMessage, ToolCall

        if self.family is None:
            return AssistantMessage(content=response)
        tools = [_tool(tool) for tool in self.state.get("tool_defs") or ()]
        parsed = parse_response(response, self.family, tools)
        calls = [
            ToolCall(id=f"call{i:05d}", name=name, arguments=json.dumps(arguments))
            for i, (name, arguments) in enumerate(parsed.calls)
        ]
        return AssistantMessage(
            content=parsed.content if calls else response,
            reasoning_content=parsed.reasoning,
            tool_calls=calls or None,
        )

    async def _end(self) -> Step:
        await self.environment.cleanup(self.state)
        if self.state.get("error") is not None:
            raise RuntimeError(f"verifiers: {self.state['error']!r}")
        await self.environment.rubric.score_rollout(self.state)
        metrics = {f"rubric/{k}": float(v) for k, v in (self.state["metrics"] or {}).items()}
        return Step(done=True, reward=float(self.state["reward"]), metrics=metrics)


@functools.cache
def _client() -> Any:
    """A client that nobody calls: episodes are drawn by mmrl's sampler."""
    from verifiers.types import ClientConfig

    return ClientConfig(api_base_url="http://localhost:9/v1", api_key_var="MMRL_NO_KEY")


def _plain(message: Any) -> dict[str, Any]:
    """A message of verifiers' as chat templates take it."""
    fields = message if isinstance(message, Mapping) else message.model_dump(exclude_none=True)
    content = fields.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        fields = {**fields, "content": "".join(part.get("text", "") for part in content)}
    return dict(fields)


def _tool(tool: Any) -> dict[str, Any]:
    fields = tool if isinstance(tool, Mapping) else tool.model_dump(exclude_none=True)
    if "function" in fields:
        return dict(fields)
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: fields[name] for name in names}}
