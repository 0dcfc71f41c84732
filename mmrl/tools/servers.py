"""The tools of MCP servers, by the official `mcp` package (extra `agents`)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl.errors import UserError
from mmrl.tools.schema import ArgumentError
from mmrl.tools.tool import Tool, ToolError

PROBE_SECONDS = 5.0  # for a server to show that it is alive after a call failed


@dataclass(frozen=True)
class Server:
    """An MCP server: a program that speaks on its standard streams, or an address.

    command          the program and its arguments
    environment      its variables, besides PATH, HOME and the like
    url              of a streamable HTTP endpoint, such as http://127.0.0.1:8000/mcp
    timeout_seconds  of one call
    connect_seconds  from its start until it has named its tools
    """

    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    url: str = ""
    timeout_seconds: float = 30.0
    connect_seconds: float = 30.0

    def __post_init__(self):
        if bool(self.command) == bool(self.url):
            raise UserError(f"an MCP server has either a command or a url, got {self}")

    def __str__(self):
        return f"MCP server {self.url or ' '.join(self.command)}"


@contextlib.asynccontextmanager
async def mcp_tools(*servers: Server) -> AsyncIterator[list[Tool]]:
    """The tools of all `servers`, for as long as the context lasts, in this event loop.

    Raises `UserError` for a server that does not come up and for tools of the same name. Later
    on nothing raises: what a server fails to answer is a failed call, and one that has crashed
    or hangs is started anew, without its state, at the next call.
    """
    connections = [_Connection(server) for server in servers]
    try:
        found = await asyncio.gather(*(one.tools() for one in connections))
        tools = [tool for group in found for tool in group]
        names = [tool.name for tool in tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"several MCP tools are named {', '.join(twice)}")
        yield tools
    finally:
        await asyncio.gather(*(one.close() for one in connections))


class _Connection:
    """A client in a task of its own, which enters and leaves the contexts that it is made of."""

    def __init__(self, server: Server):
        self.server = server
        self.client: Any = None
        self.suspect = False
        self._task: asyncio.Task | None = None
        self._stop = asyncio.Event()
        self._lock = asyncio.Lock()

    async def tools(self) -> list[Tool]:
        """Starts the server and asks for its tools, page by page."""
        try:
            async with asyncio.timeout(self.server.connect_seconds):
                await self._open()
                described, cursor = [], None
                while True:
                    page = await self.client.list_tools(cursor=cursor)
                    described += page.tools
                    cursor = page.next_cursor
                    if not cursor:
                        return [self._tool(one) for one in described]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.server} does not answer: {_reason(error)}") from error

    async def close(self) -> None:
        if self._task is not None:
            self._stop.set()
            if self.client is None:  # it has not come up
                self._task.cancel()
            await asyncio.wait([self._task])
        self._task = self.client = None

    async def _open(self) -> None:
        self.client, self._stop = None, asyncio.Event()
        ready: asyncio.Future = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(ready, self._stop))
        self.client = await asyncio.shield(ready)
        self.suspect = False

    async def _hold(self, ready: asyncio.Future, stop: asyncio.Event) -> None:
        try:
            async with _client(self.server) as client:
                if not ready.cancelled():
                    ready.set_result(client)
                await stop.wait()
        except Exception as error:  # noqa: BLE001  what the server's end makes of the contexts
            if not ready.done():
                ready.set_exception(error)

    def _tool(self, described: Any) -> Tool:
        async def run(arguments: Mapping[str, Any]) -> str:
            _check(arguments, described.input_schema)
            return await self._call(described.name, dict(arguments))

        return Tool(
            described.name,
            described.description or "",
            described.input_schema,
            run,
            self.server.timeout_seconds,
        )

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        async with self._lock:
            if self.suspect and not await self._alive():
                await self.close()
                await asyncio.wait_for(self._open(), self.server.connect_seconds)
        try:
            result = await self.client.call_tool(name, arguments)
        except BaseException as error:
            self.suspect = True
            if isinstance(error, Exception):
                raise ToolError(f"the tool's server failed: {_reason(error)}") from error
            raise
        text = _text(result)
        if result.is_error:
            raise ToolError(text)
        return text

    async def _alive(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self.client.list_tools(cache_mode="bypass")
        except Exception:  # noqa: BLE001
            return False
        self.suspect = False
        return True


def _client(server: Server) -> Any:
    try:
        import mcp
    except ImportError as error:
        raise UserError("tools of MCP servers need mcp: pip install 'mmrl[agents]'") from error
    if server.url:
        return mcp.Client(server.url)
    program, *arguments = server.command
    environment = dict(server.environment) or None
    return mcp.Client(mcp.StdioServerParameters(command=program, args=arguments, env=environment))


def _check(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` with the first thing that `schema` does not allow."""
    import jsonschema
    import referencing

    kind = jsonschema.validators.validator_for(schema)
    validator = kind(schema, registry=referencing.Registry())  # which fetches nothing
    try:
        problem = jsonschema.exceptions.best_match(validator.iter_errors(dict(arguments)))
    except Exception:  # noqa: BLE001  a schema that is none: the server may still judge
        return
    if problem is not None:
        raise ArgumentError(f"{problem.json_path.removeprefix('$.')}: {problem.message}")


def _text(result: Any) -> str:
    """The text of a result; other content is named."""
    parts = [
        part.text if part.type == "text" else f"[{part.type}]" for part in result.content or []
    ]
    return "\n".join(parts)


def _reason(error: BaseException) -> str:
    """The first cause in groups of errors, as task groups raise them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
