"""What a confined program may use, and how it ended."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from mmrl.errors import UserError

Status = Literal["ok", "failed", "timeout", "memory", "output", "files", "processes"]


@dataclass(frozen=True)
class Limits:
    """Limits of one execution, of all its processes together unless said.

    wall_seconds  from its start to its end
    cpu_seconds   of all its processes, and of each by the kernel
    memory_mb     resident; also the address space of each process, by the kernel
    processes     processes and threads at a time
    open_files    of each process
    file_mb       in the scratch folder; also the size of each file, by the kernel
    files         files and folders in the scratch folder
    output_kb     standard output and standard error
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_mb: int = 512
    processes: int = 16
    open_files: int = 64
    file_mb: int = 64
    files: int = 1_000
    output_kb: int = 256

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise UserError(f"Limits.{field.name} must be a number above 0, got {value!r}")


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    status       "ok" if it ended by itself with exit code 0 and "failed" with another, otherwise
                 the limit that ended it; "timeout" is that of wall or CPU time
    exit_code    its exit code, 128 + n if signal n ended it
    stdout       what it wrote, as far as `output_kb` allows; bytes that are no UTF-8 are U+FFFD
    stderr       the same of standard error
    seconds      wall time
    confinement  what held it, as `confinement()` says
    """

    status: Status
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    confinement: str
