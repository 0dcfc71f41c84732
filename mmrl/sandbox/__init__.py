"""Runs code that nobody vouches for: a process of its own, confined and limited."""

import asyncio
import sys
import threading
from collections.abc import Mapping, Sequence

from mmrl.errors import UserError
from mmrl.sandbox.execution import ConfinementError, execute
from mmrl.sandbox.kinds import chosen, confinement, describe
from mmrl.sandbox.launch import checked_files
from mmrl.sandbox.limits import Execution, Limits

__all__ = [
    "ConfinementError",
    "Execution",
    "Limits",
    "confinement",
    "run",
    "run_async",
    "run_python",
    "run_python_async",
]
PROGRAM = "main.py"


def run(
    command: Sequence[str],
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> Execution:
    """Runs `command` in an empty scratch folder that holds `files`, {relative path: text}.

    It sees the system's programs and this Python with its packages, none of this process's
    variables, and no network; it can write into its folder alone, which is gone afterwards, as is
    every process it has started. Whatever it does is an `Execution`; `UserError` is raised for bad
    arguments and where nothing confines (see `confinement`), `ConfinementError` if the system
    lacks the means to start it.
    """
    return _run(command, stdin, files, limits, None)


def run_python(
    source: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> Execution:
    """`run` of a Python program, this interpreter's; it finds `files` by import, too."""
    return run(_PYTHON, stdin=stdin, files=_with_program(source, files), limits=limits)


async def run_async(
    command: Sequence[str],
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> Execution:
    """`run` for asyncio. Cancelling it ends the program with all its processes, then returns."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Execution] = loop.create_future()
    cancelled = threading.Event()

    def settle(result: Execution | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, problem = None, None
        try:
            result = _run(command, stdin, files, limits, cancelled)
        except BaseException as error:  # noqa: BLE001
            problem = error
        loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=work, name="sandbox", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([future])
        raise


async def run_python_async(
    source: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> Execution:
    """`run_python` for asyncio, as `run_async`."""
    program = _with_program(source, files)
    return await run_async(_PYTHON, stdin=stdin, files=program, limits=limits)


_PYTHON = (sys.executable, PROGRAM)


def _run(
    command: Sequence[str],
    stdin: str,
    files: Mapping[str, str] | None,
    limits: Limits,
    cancelled: threading.Event | None,
) -> Execution:
    if isinstance(command, str) or not command or any("\0" in word for word in command):
        raise UserError(f"a command is a list of words without zero bytes, got {command!r}")
    kind = chosen()
    checked = checked_files(files)
    return execute(kind, command, stdin, checked, limits, describe(kind), cancelled)


def _with_program(source: str, files: Mapping[str, str] | None) -> dict[str, str]:
    if PROGRAM in (files or {}):
        raise UserError(f"{PROGRAM} is the name of the program itself and of no other file")
    return {PROGRAM: source, **(files or {})}
