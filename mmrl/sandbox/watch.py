"""What all processes of an execution use, read from /proc, and what lies in its scratch folder."""

import os
from dataclasses import dataclass

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    processes: int = 0  # threads included
    memory_bytes: int = 0  # resident, shared pages once for each process
    cpu_seconds: float = 0.0  # of those that have ended as well
    pids: tuple[int, ...] = ()


def tree_usage(root: int) -> Usage:
    """Of process `root` and its descendants; what has just ended counts as nothing."""
    threads, pages, ticks, pids = 0, 0, 0, []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            waiting += _children(pid)
        except (OSError, IndexError):
            continue
        ticks += sum(map(int, fields[11:15]))
        threads += int(fields[17])
        pages += int(fields[21])
        pids.append(pid)
    return Usage(threads, pages * PAGE_BYTES, ticks / TICKS_A_SECOND, tuple(pids))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found


def folder_usage(folder: str, most_files: int) -> tuple[int, int]:
    """(files and folders, bytes on disk) below `folder`; stops at `most_files` + 1 entries.

    Links are not followed. What cannot be read, being too deep or closed, counts as too much.
    """
    count = size = 0
    waiting = [folder]
    while waiting and count <= most_files:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most_files:
                        break
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError:
            return most_files + 1, size
    return count, size


def mounted_files(pids: tuple[int, ...], folder: str) -> int:
    """Files and folders on the file system that a process sees at `folder`, 0 if none can say."""
    for pid in reversed(pids):
        try:
            usage = os.statvfs(f"/proc/{pid}/root{folder}")
        except OSError:
            continue
        return usage.f_files - usage.f_ffree
    return 0
