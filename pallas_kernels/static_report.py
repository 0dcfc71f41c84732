"""How near the kernels come to the hardware's floor, from compiled code: no accelerator is needed.

`python -m pallas_kernels.bench --static` prints it. Each platform's compiler has a process of its
own, which finds nothing of the other.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pallas_kernels import gpu_compiler, gpu_static, tpu_schedule, tpu_static

PLATFORMS = {"tpu": (tpu_static, tpu_schedule), "gpu": (gpu_static, gpu_compiler)}
CHIPS = (*tpu_static.CHIPS, *gpu_static.CHIPS)
KERNELS = tuple(tpu_static.KERNELS)
Row = tpu_static.Row | gpu_static.Row
_WORKER = "from pallas_kernels import static_report; static_report.work()"


class Job(NamedTuple):
    """A kernel to compile at a shape."""

    kernel: str
    chip: str
    batch: int
    length: int
    heads: int
    dim: int
    dtype: str
    segments: bool


def jobs(
    *,
    chips: Iterable[str],
    lengths: Iterable[int],
    kernels: Iterable[str] = KERNELS,
    batch: int = 1,
    decode_batch: int = 64,
    heads: int = 64,
    dims: Iterable[int] = (128,),
    dtypes: Iterable[str] = ("bfloat16",),
    segments: bool = False,
) -> list[Job]:
    """Every kernel on every chip at every shape; decoding is one token in `decode_batch` rows."""
    return [
        Job(kernel, chip, rows, length, heads, dim, dtype, segments)
        for chip, kernel, dim, dtype in itertools.product(chips, kernels, dims, dtypes)
        for rows, length in (
            [(decode_batch, 1)] if kernel.endswith("decode") else ((batch, x) for x in lengths)
        )
    ]


def rows(platform: str, jobs: Sequence[Job]) -> Iterator[Row]:
    """The report of these jobs, all for chips of one platform, as it is made.

    Raises:
      RuntimeError: if the platform's compiler is not installed.
      subprocess.CalledProcessError: if a kernel does not compile.
    """
    static, compiler = PLATFORMS[platform]
    if not compiler.available():
        raise RuntimeError(f"the static analysis {compiler.REMEDY}")
    with tempfile.TemporaryDirectory(prefix="pallas_kernels_") as directory:
        command = [sys.executable, "-c", _WORKER, platform, json.dumps(jobs)]
        environment = compiler.environment(directory)
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
            for line in run.stdout or ():
                yield static.Row(**json.loads(line))
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, command)


def work() -> None:
    """The process of `rows`: prints a JSON object a row."""
    platform, arguments = sys.argv[1:]
    static, _ = PLATFORMS[platform]
    for job in json.loads(arguments):
        for row in static.analyse(*job):
            print(json.dumps(row._asdict()), flush=True)


def print_report(jobs: Sequence[Job]) -> None:
    """Prints a table a platform, with the figures of its chips; one without a compiler is named."""
    for platform, (static, compiler) in PLATFORMS.items():
        mine = [job for job in jobs if job.chip in static.CHIPS]
        if not mine:
            continue
        if not compiler.available():
            print(f"{platform}: left out, {compiler.REMEDY}")
            continue
        for chip in dict.fromkeys(job.chip for job in mine):
            print(static.figures(chip))
        print(" ".join(f"{name:>{_width(name)}}" for name in static.Row._fields))
        for row in rows(platform, mine):
            print(_line(row), flush=True)
        print()


def _line(row: Row) -> str:
    cells = (f"{x:.2f}" if isinstance(x, float) else str(x) for x in row)
    return " ".join(f"{cell:>{_width(name)}}" for cell, name in zip(cells, row._fields))


def _width(name: str) -> int:
    return 28 if name == "kernel" else max(len(name), 9)
