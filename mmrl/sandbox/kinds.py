"""Which confinement is in force: the strongest that works here, or the one that is asked for.

MMRL_SANDBOX names one: bubblewrap, landlock, user, or none, which confines nothing.
"""

import functools
import os
import sys
from typing import get_args

from mmrl.errors import UserError, nearest
from mmrl.sandbox.execution import ConfinementError, execute
from mmrl.sandbox.guard import SCOPED_ABI, landlock_abi
from mmrl.sandbox.launch import Kind, is_root
from mmrl.sandbox.limits import Limits
from mmrl.sandbox.system_calls import filter_program

VARIABLE = "MMRL_SANDBOX"
KINDS: tuple[Kind, ...] = get_args(Kind)
_REMEDY = (
    "install bubblewrap (apt install bubblewrap), or a Linux with landlock (5.13), or set "
    f"{VARIABLE}=none to run model-written code without confinement"
)


def confinement() -> str:
    """What holds the programs that `run` starts, and what it cannot hold. Raises as `run` does."""
    return describe(chosen())


def chosen() -> Kind:
    """The kind in force. Raises `UserError` if none works here and none was not asked for."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        for kind in KINDS[:-1]:
            if obstacle(kind) is None:
                return kind
        reasons = "; ".join(str(obstacle(kind)) for kind in KINDS[:-1])
        raise UserError(f"no confinement for code works here ({reasons}): {_REMEDY}")
    if asked not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"{VARIABLE} is one of {known}, got {asked!r}.{nearest(asked, KINDS)}")
    if asked != "none" and (reason := obstacle(asked)):
        raise UserError(f"{VARIABLE}={asked} does not work here ({reason}): {_REMEDY}")
    return asked


@functools.cache
def obstacle(kind: Kind) -> str | None:
    """Why `kind` does not work here, None if a program ran under it."""
    if kind == "landlock" and landlock_abi() < 1:
        return "landlock: the kernel has none"
    if kind == "user" and not is_root():
        return "user: only root can run programs as another user"
    command = [sys.executable, "-I", "-S", "-c", "print(1)"]
    try:
        execution = execute(kind, command, "", {}, Limits(wall_seconds=60), kind)
    except (ConfinementError, OSError) as error:
        return str(error)
    return None if execution.stdout == "1\n" else f"{kind}: {execution}"


def describe(kind: Kind) -> str:
    """`kind` in words: what it is made of, and what it leaves open."""
    if kind == "none":
        return "none: limits of time, memory, files and output only"
    system_calls = filter_program(signals=True, metadata=True, truncation=True) is not None
    made_of = ["rlimits", *(["seccomp"] if system_calls else [])]
    made_of += ["a user of its own"] if is_root() else []
    if kind == "bubblewrap":
        return f"bubblewrap: namespaces, {', '.join(made_of)}"
    abi = landlock_abi() if kind == "landlock" else 0
    made_of = [f"ABI {abi}", *made_of] if abi else made_of
    return f"{kind}: {', '.join(made_of)}; not confined: {', '.join(gaps(abi, system_calls))}"


def gaps(abi: int, system_calls: bool) -> list[str]:
    """What stays open without namespaces, under this version of landlock (0: none)."""
    found = ["the size of the scratch folder beyond a look at it ten times a second"]
    if not abi:
        found.append("reading and writing where every user may")
    elif not is_root():
        found.append("the number of processes beyond such a look")
    if not system_calls:
        found.append("the network" if abi < 4 else "the network but TCP")
        if abi < SCOPED_ABI and not is_root():
            found.append("signals to this user's processes")
        if not is_root():
            found.append("modes of this user's files")
    return found
