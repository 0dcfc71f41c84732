"""What mmrl calls of the package verifiers (0.1.14), in its shapes: the real one does not install
beside mmrl's other packages. Rollouts follow verifiers/envs/multiturn_env.py, tools tool_env.py.
"""

import inspect
import json
import sys
import types
from dataclasses import asdict, dataclass
from typing import Any


class State(dict):
    """As verifiers' State: a dict, in which the row's fields are found too."""

    def __getitem__(self, key):
        return super().get("input", {}).get(key) if key not in self else super().__getitem__(key)

    def get(self, key, default=None):
        found = self[key]
        return default if found is None else found


@dataclass
class Message:
    role: str = "assistant"
    content: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None

    def model_dump(self, exclude_none):
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class ToolCall:
    id: str
    name: str
    arguments: str


class Rubric:
    def __init__(self, funcs):
        self.funcs = funcs

    def _get_group_reward_funcs(self):
        return []

    async def score_rollout(self, state):
        state["metrics"] = {f.__name__: f(state["completion"], state["answer"]) for f in self.funcs}
        state["reward"] = sum(state["metrics"].values())


class MultiTurnEnv:
    def __init__(self, rows, rubric, max_turns=-1, tools=()):
        self.rows, self.rubric, self.max_turns = rows, rubric, max_turns
        self.tools = {tool.__name__: tool for tool in tools}
        self.cleaned = 0

    def get_dataset(self):
        return self.rows

    def get_eval_dataset(self):
        return self.rows[:1]

    async def init_state(self, row, client, model):
        state = State(input=dict(row), trajectory=[], trajectory_id="t", error=None, reward=None)
        state |= {"metrics": None, "final_env_response": None, "completion": None}
        state["timing"] = types.SimpleNamespace(generation=types.SimpleNamespace(start=0, end=0))
        state["prompt"] = [Message(**message) for message in row["prompt"]]
        state["tool_defs"] = [
            {"name": name, "description": inspect.getdoc(tool), "parameters": {"type": "object"}}
            for name, tool in self.tools.items()
        ]
        return state

    async def setup_state(self, state):
        pass

    async def get_prompt_messages(self, state):
        if not state["trajectory"]:
            return state["prompt"]
        last = state["trajectory"][-1]
        said = [*last["prompt"], *last["completion"]]
        return [*said, *await self.env_response(said, state)]

    async def add_trajectory_step(self, state, step):
        state["trajectory"].append(step)

    async def is_completed(self, state):
        turns = len(state["trajectory"])
        return state["final_env_response"] is not None or 0 < self.max_turns <= turns

    async def cleanup(self, state):
        self.cleaned += 1
        last = state["trajectory"][-1]
        state["completion"] = [*last["prompt"], *last["completion"]][len(state["prompt"]) :]


class ToolEnv(MultiTurnEnv):
    async def is_completed(self, state):
        calls = state["trajectory"] and state["trajectory"][-1]["completion"][-1].tool_calls
        return await super().is_completed(state) or (state["trajectory"] and not calls)

    async def env_response(self, messages, state):
        found = []
        for call in messages[-1].tool_calls:
            text = str(self.tools[call.name](**json.loads(call.arguments)))
            found.append(Message("tool", text, tool_call_id=call.id))
        return found


def install(environments: dict, monkeypatch) -> types.ModuleType:
    """Makes `import verifiers` give this, with these environments to load."""
    module = types.ModuleType("verifiers")
    module.State, module.MultiTurnEnv, module.ToolEnv = State, MultiTurnEnv, ToolEnv
    module.load_environment = lambda name, **arguments: environments[name](**arguments)
    module.types = types.ModuleType("verifiers.types")
    module.types.AssistantMessage, module.types.ToolCall = Message, ToolCall
    module.types.ClientConfig = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "verifiers", module)
    monkeypatch.setitem(sys.modules, "verifiers.types", module.types)
    return module
