"""What a model may call: a typed Python function, described by a JSON schema, and its results."""

import asyncio
import collections
import inspect
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrl.errors import UserError, nearest
from mmrl.text.tool_calls import ParsedResponse, ToolCall
from mmrl.tools.schema import ArgumentError, bind, parameters_schema

Status = Literal["ok", "error", "malformed", "timeout"]
MALFORMED = "error"  # what answers a call that names no tool is called
MOST_CHARACTERS = 20_000


class ToolError(Exception):
    """A failure inside of a tool, whose message alone goes to the model."""


@dataclass(frozen=True)
class Submission:
    """What a tool returns to end the episode with `answer`."""

    answer: Any


@dataclass(frozen=True)
class Tool:
    """A tool as the model sees it, and `run`, what a call of it does.

    name, description, parameters  as in an OpenAI function; parameters is a JSON schema
    run                 gets the arguments by name, returns text or any JSON value or a
                        `Submission`; raises `ArgumentError` for arguments that do not fit and
                        anything else for another failure
    timeout_seconds     of one call
    most_characters     of a result; the middle of a longer one is left out
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Awaitable[Any]]
    timeout_seconds: float = 30.0
    most_characters: int = MOST_CHARACTERS

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", self.name):
            raise UserError(f"a tool's name is 1 to 128 letters, digits, _ . or -: {self.name!r}")
        if self.timeout_seconds <= 0 or self.most_characters < 100:
            raise UserError(
                f"tool {self.name} needs timeout_seconds > 0 and most_characters >= 100, got "
                f"{self.timeout_seconds} and {self.most_characters}"
            )

    @property
    def schema(self) -> dict[str, Any]:
        """{"type": "function", "function": …}, as chat templates and parsers take it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolResult:
    """What a call gave.

    name        of the tool; "error" where none could be read from the call
    text        for the model
    status      "ok"; "malformed" for a call that could not be made: unreadable, an unknown tool or
                wrong arguments; "error" for a failure inside of the tool; "timeout"
    seconds     that the call took
    submission  the answer, if the call ends the episode
    """

    name: str
    text: str
    status: Status
    seconds: float = 0.0
    submission: Submission | None = None


def tool(
    function: Callable,
    *,
    name: str | None = None,
    timeout_seconds: float = 30.0,
    most_characters: int = MOST_CHARACTERS,
) -> Tool:
    """A typed function, plain or async, as a tool.

    The docstring is the description; lines "argument: …" under "Args:" describe arguments. A plain
    function runs in a thread of its own, which is left behind when its time is over. Raises
    `UserError` for arguments without a type or of a type that JSON does not have.
    """
    description, arguments = _documentation(function)

    async def run(given: Mapping[str, Any]) -> Any:
        bound = bind(function, given)
        if inspect.iscoroutinefunction(function):
            return await function(**bound)
        return await _in_thread(function, bound)

    return Tool(
        name or function.__name__,
        description,
        parameters_schema(function, arguments),
        run,
        timeout_seconds,
        most_characters,
    )


async def call(tools: Sequence[Tool], wanted: ToolCall) -> ToolResult:
    """Makes one call. Never raises, except when it is cancelled."""
    named = {one.name: one for one in tools}
    chosen = named.get(wanted.name)
    if chosen is None:
        there = ", ".join(named) or "none"
        text = f"Error: no tool {wanted.name!r}.{nearest(wanted.name, named)} There are: {there}"
        return ToolResult(MALFORMED, text[:MOST_CHARACTERS], "malformed")
    started = time.monotonic()
    submission: Submission | None = None
    status: Status = "ok"
    try:
        async with asyncio.timeout(chosen.timeout_seconds) as limit:
            value = await chosen.run(wanted.arguments)
        if isinstance(value, Submission):
            submission, value = value, value.answer
        text = value if isinstance(value, str) else _json(value)
    except ArgumentError as error:
        status, text = "malformed", f"Error: {error}"
    except Exception as error:  # noqa: BLE001
        if isinstance(error, TimeoutError) and limit.expired():
            status, text = "timeout", f"Error: no result within {chosen.timeout_seconds:g} seconds"
        else:
            status, text = "error", f"Error: {_described(error)}"
    text = shortened(text, chosen.most_characters)
    return ToolResult(chosen.name, text, status, time.monotonic() - started, submission)


async def call_all(tools: Sequence[Tool], response: ParsedResponse) -> list[ToolResult]:
    """Makes all calls of a response at once: their results in order, then those it did not spell.

    A response without any call gives an empty list.
    """
    results = await asyncio.gather(*(call(tools, one) for one in response.calls))
    return [
        *results,
        *(ToolResult(MALFORMED, f"Error: {error}", "malformed") for error in response.errors),
    ]


def counts(results: Sequence[ToolResult]) -> dict[str, int]:
    """Calls, and those of each status that is not "ok", for the metrics of an episode."""
    found = collections.Counter(result.status for result in results)
    return {"calls": len(results)} | {s: found[s] for s in ("malformed", "error", "timeout")}


def shortened(text: str, most: int) -> str:
    """`text`, or its two ends with what was left out between them in words."""
    if len(text) <= most:
        return text
    gap = f"\n… {len(text) - most} characters left out …\n"
    half = (most - len(gap)) // 2
    return text[:half] + gap + text[len(text) - half :]


async def _in_thread(function: Callable, arguments: Mapping[str, Any]) -> Any:
    """`function` in a daemon thread: one that never returns does not keep the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():  # its time was over
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def work() -> None:
        value, problem = None, None
        try:
            value = function(**arguments)
        except BaseException as error:  # noqa: BLE001
            problem = RuntimeError(_described(error)) if _ends_a_loop(error) else error
        try:
            loop.call_soon_threadsafe(settle, value, problem)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    threading.Thread(target=work, name="tool", daemon=True).start()
    return await future


def _ends_a_loop(error: BaseException) -> bool:
    """Whether a future would refuse `error`, or the event loop end because of it."""
    return isinstance(error, StopIteration) or not isinstance(error, Exception)


def _documentation(function: Callable) -> tuple[str, dict[str, str]]:
    """(description, {argument: its description}) of a docstring."""
    text = inspect.getdoc(function) or ""
    description, _, rest = text.partition("\nArgs:")
    names = set(inspect.signature(function).parameters)
    arguments: dict[str, str] = {}
    current = None
    for line in rest.split("\n"):
        if re.match(r"\S", line):  # Returns:, Raises:, …
            break
        found = re.match(r"\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        if found and found[1] in names:
            current = found[1]
            arguments[current] = found[2].strip()
        elif current and line.strip():
            arguments[current] += f" {line.strip()}"
    return description.strip(), arguments


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _described(error: BaseException) -> str:
    if isinstance(error, ToolError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
