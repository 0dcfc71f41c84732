"""How a program is started under each kind of confinement: command lines and the guard's orders."""

import functools
import itertools
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mmrl.errors import UserError
from mmrl.sandbox.guard import SCOPED_ABI, TRUNCATION_ABI, landlock_abi
from mmrl.sandbox.limits import Limits
from mmrl.sandbox.system_calls import filter_program

Kind = Literal["bubblewrap", "landlock", "user", "none"]
SCRATCH = "/scratch"  # where a program finds its folder, and the name it has in what it prints
GUARD = Path(__file__).with_name("guard.py")
MB = 2**20
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    "/etc/localtime",
)
# Without namespaces, libraries look here for the number of processors.
PROCESSORS = ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")


@dataclass(frozen=True)
class Launch:
    """How one execution is confined.

    scratch  its folder on this machine, None where it lies in a namespace of its own
    uid      the user it runs as, None for the one of this process
    """

    kind: Kind
    scratch: str | None
    uid: int | None

    @property
    def shares_user(self) -> bool:
        """Whether the program runs as this process's user among its other processes."""
        return self.kind != "bubblewrap" and self.uid is None

    def arguments(self, command: Sequence[str], orders_fd: int, limits: Limits) -> list[str]:
        """Command line that confines and then executes `command`."""
        python = [sys.executable, "-I", "-S"]
        if self.kind == "bubblewrap":
            spaces = bubblewrap(root=self.uid is not None, scratch_bytes=int(limits.file_mb * MB))
            return [*spaces, *python, "/guard.py", str(orders_fd), *command]
        return [*python, str(GUARD), str(orders_fd), *command]

    def orders(self, files: Mapping[str, str], limits: Limits, report_fd: int) -> bytes:
        """JSON for the guard."""
        spaces = self.kind == "bubblewrap"
        landlock = self.kind == "landlock"
        system_calls = None
        if self.kind != "none":
            alone, abi = not self.shares_user, landlock_abi() if landlock else 0
            system_calls = filter_program(
                signals=alone or abi >= SCOPED_ABI,
                metadata=alone,
                truncation=not landlock or abi >= TRUNCATION_ABI,
            )
        readable = [*readable_paths(), *PROCESSORS]
        processes = limits.processes * (16 if self.shares_user else 1)  # see `execution._look`
        orders: dict[str, Any] = {
            "report": report_fd,
            "parent": os.getpid(),
            "supervise": not spaces,
            "uid": self.uid,
            "search": landlock and self.uid is not None and behind_closed_folders(),
            "shares_user": self.shares_user,
            "scratch": self.scratch or SCRATCH,
            "files": dict(files),
            "rlimits": rlimits(limits, processes),
            "readable": readable if landlock else None,
            "writable": [self.scratch],
            "seccomp": (system_calls or b"").hex(),
        }
        return json.dumps(orders).encode()


def environment(scratch: str | None) -> dict[str, str]:
    """All variables that a program gets: none of this process's."""
    folder = scratch or SCRATCH
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        **dict.fromkeys(threads, "1"),
    }


def bubblewrap(*, root: bool, scratch_bytes: int) -> list[str]:
    """bwrap and its options, `--` included.

    A user with root's rights needs no user namespace; the guard then changes to a user of its own,
    for which the kernel counts processes. It gets the rights for that and no others.
    """
    user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    options = [
        shutil.which("bwrap") or "bwrap",
        *(user if root else ["--unshare-user"]),
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"),
    ]
    shown = readable_paths()
    above = [str(p) for path in shown for p in reversed(PurePosixPath(path).parents)]
    for folder in dict.fromkeys(above):
        if folder != "/" and not _within(folder, shown):
            options += ["--perms", "0755", "--dir", folder]
    for path in shown:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind", path, path]
    options += ["--ro-bind", str(GUARD), "/guard.py", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", SCRATCH):
        options += ["--perms", "1777", "--size", str(scratch_bytes), "--tmpfs", folder]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", SCRATCH, "--"]


def rlimits(limits: Limits, processes: int) -> dict[str, int]:
    """{name of the `resource` module: value} for each process."""
    return {
        "RLIMIT_AS": int(limits.memory_mb * MB),
        "RLIMIT_CPU": max(1, round(limits.cpu_seconds + 0.5)),
        "RLIMIT_NPROC": int(processes),
        "RLIMIT_NOFILE": int(limits.open_files),
        "RLIMIT_FSIZE": int(limits.file_mb * MB),
        **dict.fromkeys(("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"), 0),
        **dict.fromkeys(("RLIMIT_NICE", "RLIMIT_RTPRIO"), 0),
    }


@functools.cache
def readable_paths() -> tuple[str, ...]:
    """Files and folders that a program may read: the system's and this interpreter's."""
    interpreter = (sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix))
    paths: list[str] = []
    for path in (*SYSTEM, *interpreter):
        if path == "/":
            raise UserError("a Python that is installed in / cannot be shown to a sandbox alone")
        if os.path.lexists(path) and not _within(path, paths):
            paths.append(path)
    return tuple(paths)


def _within(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


@functools.cache
def behind_closed_folders() -> bool:
    """Whether another user could not get to the interpreter, such as one below /root."""
    return any(
        not os.stat(parent).st_mode & stat.S_IXOTH
        for path in readable_paths()
        for parent in PurePosixPath(path).parents
    )


def is_root() -> bool:
    return os.geteuid() == 0


_started = itertools.count(secrets.randbelow(2**30))


def new_user() -> int:
    """The id of a user that nobody has. Where this process has few ids, one far from the first."""
    first, count = 0, 2**32
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
        first, count = max(
            ((int(line.split()[0]), int(line.split()[2])) for line in lines), key=lambda one: one[1]
        )
    except (OSError, ValueError):
        pass
    start, end = first + min(count // 3, 10**9), first + min(count - 5_000, 2 * 10**9)
    return start + next(_started) % max(1, end - start)


def checked_files(files: Mapping[str, str] | None) -> dict[str, str]:
    """`files`; raises `UserError` for a path that is not below the scratch folder."""
    for path in files or {}:
        parts = PurePosixPath(path)
        if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in path:
            raise UserError(f"files of a sandbox have relative paths without '..', got {path!r}")
    return dict(files or {})
