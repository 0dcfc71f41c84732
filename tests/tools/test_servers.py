"""Tools of MCP servers are called like any other, and their servers may crash and hang."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrl.errors import UserError
from mmrl.text import ToolCall
from mmrl.tools import call
from mmrl.tools.servers import Server, mcp_tools

pytest.importorskip("mcp")
SERVER = str(Path(__file__).with_name("mcp_server.py"))
STDIO = Server((sys.executable, SERVER), timeout_seconds=20)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def http_server(port):
    with subprocess.Popen(
        [sys.executable, SERVER, f"{port}"], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        try:
            yield Server(url=f"http://127.0.0.1:{port}/mcp", timeout_seconds=20)
        finally:
            process.kill()


def result(tools, name, **arguments):
    return call(tools, ToolCall(name, arguments))


async def used(server):
    async with mcp_tools(server) as tools:
        add = next(tool for tool in tools if tool.name == "add")
        assert {tool.name for tool in tools} == {"add", "count", "fail", "crash", "hang"}
        assert add.description == "Adds two numbers."
        assert add.parameters["properties"]["a"]["type"] == "integer"
        assert add.parameters["required"] == ["a"]
        sums = await asyncio.gather(*(result(tools, "add", a=a, b=a) for a in range(20)))
        assert [(one.status, one.text) for one in sums] == [("ok", f"{2 * a}") for a in range(20)]
        failed = await result(tools, "fail")
        assert failed.status == "error"
        assert "it broke" in failed.text
        for arguments, words in [
            ({"a": "x"}, "a: 'x' is not of type 'integer'"),
            ({}, "'a' is a required property"),
        ]:
            wrong = await result(tools, "add", **arguments)
            assert wrong.status == "malformed"
            assert words in wrong.text


def test_tools_over_standard_streams():
    asyncio.run(used(STDIO))


def test_tools_over_http():
    with http_server(free_port()) as server:
        asyncio.run(used(server))


def test_a_server_that_crashed_is_started_anew():
    async def main():
        async with mcp_tools(STDIO) as tools:
            assert [(await result(tools, "count")).text for _ in range(2)] == ["1", "2"]
            crashed = await result(tools, "crash")
            assert crashed.status == "error"
            assert "the tool's server failed" in crashed.text
            again = await result(tools, "count")
            assert (again.status, again.text) == ("ok", "1")

    asyncio.run(main())


def test_a_server_that_hangs_costs_its_time_and_is_started_anew(monkeypatch):
    monkeypatch.setattr("mmrl.tools.servers.PROBE_SECONDS", 0.5)

    async def main():
        async with mcp_tools(Server(STDIO.command, timeout_seconds=6)) as tools:
            await result(tools, "count")
            late = await result(tools, "hang")
            assert (late.status, late.text) == ("timeout", "Error: no result within 6 seconds")
            again = await result(tools, "count")
            assert (again.status, again.text) == ("ok", "1")

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 40


def test_an_http_server_that_is_gone_fails_calls_until_it_is_back():
    port = free_port()

    async def main():
        with http_server(port) as server:
            async with mcp_tools(server) as tools:
                assert (await result(tools, "add", a=1)).text == "2"
                crashed = await result(tools, "crash")
                assert crashed.status == "error"
                assert (await result(tools, "add", a=1)).status == "error"
                with http_server(port):
                    back = await result(tools, "add", a=1)
                    assert (back.status, back.text) == ("ok", "2")

    asyncio.run(main())


def test_a_call_that_is_cancelled_leaves_the_server_usable():
    async def main():
        async with mcp_tools(STDIO) as tools:
            task = asyncio.create_task(result(tools, "add", a=1))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await result(tools, "add", a=1)).text == "2"

    asyncio.run(main())


def test_no_server_outlives_its_context():
    async def main():
        async with mcp_tools(STDIO) as tools:
            await result(tools, "add", a=1)
            return descendants()

    def descendants():
        path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        return {int(pid) for pid in path.read_text().split()}

    before = descendants()
    during = asyncio.run(main())
    assert len(during) > len(before)
    assert descendants() == before


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (Server(("no-such-program",)), "MCP server no-such-program does not answer"),
        (Server((sys.executable, "-c", "pass")), "does not answer"),
        (Server(url="http://127.0.0.1:9/mcp"), "http://127.0.0.1:9/mcp does not answer"),
        (
            Server((sys.executable, "-c", "import time; time.sleep(60)"), connect_seconds=1),
            "does not answer: TimeoutError",
        ),
    ],
)
def test_a_server_that_does_not_come_up_is_a_mistake_of_the_users(server, words):
    async def main():
        async with mcp_tools(server):
            raise AssertionError("it came up")

    with pytest.raises(UserError, match=words):
        asyncio.run(main())


def test_servers_have_a_command_or_an_address_and_tools_of_their_own_name():
    for given in ({}, {"command": ("x",), "url": "http://x"}):
        with pytest.raises(UserError, match="either a command or a url"):
            Server(**given)

    async def main():
        async with mcp_tools(STDIO, STDIO):
            raise AssertionError("it came up")

    with pytest.raises(UserError, match="several MCP tools are named add, count"):
        asyncio.run(main())
