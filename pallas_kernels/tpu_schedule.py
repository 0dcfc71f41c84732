"""Compiles for TPUs on a machine without one and reads the schedule that the compiler made.

The compiler is libtpu (`pip install libtpu`); the process needs `environment` from its start. Each
compiled program leaves its listing: the bundles of the grid's loop, of which a TensorCore starts
one a cycle while nothing stalls, and every allocation in VMEM. Those are the kernel's own, and the
arrays that XLA keeps there around it: a small operand is moved to VMEM whole, and has no blocks.
"""

import contextlib
import csv
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_BUNDLE = re.compile(r"\s*(?P<address>0x[0-9a-f]+|0)\s+(?P<start>LB)?.{0,4}:\s*(?P<inside>>*)")
_VMEM = re.compile(r"space=vmem, size = (?P<bytes>0x[0-9a-f]+)")
_DUMP = "--xla_jf_dump_to="
REMEDY = "needs the TPU compiler: pip install libtpu"


class Schedule(NamedTuple):
    """What one compiled kernel does in a grid step."""

    bundles: int  # in the loop over the grid: cycles of a step, without stalls
    vmem_bytes: int  # double-buffered blocks, scratch, spilled registers, and whole operands
    spilled_bytes: int  # the registers alone


def available() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def environment(directory: str | Path | None = None) -> dict[str, str]:
    """The environment of a process that compiles for TPUs, its listings left in `directory`."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",  # what they ask of a CPU's compiler means something else to a TPU's
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache leaves no listing
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: the topology asked for decides
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if directory is not None:
        settings["LIBTPU_INIT_ARGS"] = f"{_DUMP}{directory} --xla_jf_dump_llo_text=true"
    return os.environ | settings


@contextlib.contextmanager
def lowering_for(topology: str) -> Iterator[NamedSharding]:
    """Traces as for one chip of a topology such as "v5p:2x2x1"; yields a sharding on that chip."""
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    mesh = Mesh(np.array(devices[:1]), "chip")
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield NamedSharding(mesh, PartitionSpec())


def compile_for(
    topology: str, function: Callable, *shapes: jax.ShapeDtypeStruct
) -> jax.stages.Compiled:
    """`function` of arrays of these shapes, compiled for one chip of the topology."""
    with lowering_for(topology) as sharding:
        arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes]
        return jax.jit(function).lower(*arguments).compile()


def schedule_of(kernel: str, topology: str, function: Callable, *shapes) -> Schedule:
    """The schedule of the Pallas kernel of that name in `function`, from a compilation."""
    directory = Path(os.environ["LIBTPU_INIT_ARGS"].split(_DUMP)[1].split()[0])
    before = set(directory.iterdir()) if directory.exists() else set()
    compile_for(topology, function, *shapes)
    new = set(directory.iterdir()) - before

    def listing(kind: str, program: str = kernel) -> str:
        (path,) = (x for x in new if program in x.name and x.name.endswith(f"-{kind}.txt"))
        return path.read_text(errors="replace")

    allocations = listing("post-delay-converter").splitlines()
    sizes = [
        (int(found["bytes"], 16), "_spill " in line)
        for line in allocations
        if (found := _VMEM.search(line))
    ]
    placed = placed_bytes(
        listing("memory-space-assignment-scheduleinfo", "TLP"),
        listing("memory-space-assignment-allocinfo", "TLP"),
        kernel,
    )
    schedule = Schedule(
        bundles=loop_bundles(listing("final_bundles")),
        vmem_bytes=placed + sum(size for size, _ in sizes),
        spilled_bytes=sum(size for size, spilled in sizes if spilled),
    )
    for path in new:  # a listing is tens of megabytes
        path.unlink()
    return schedule


def loop_bundles(listing: str) -> int:
    """Bundles of the loop over the grid in a program's text; all, where the grid is one step."""
    bundles = [x for x in map(_BUNDLE.match, listing.splitlines()) if x]
    loop = [x for x in bundles if x["start"] or x["inside"]] or bundles
    return int(loop[-1]["address"], 16) - int(loop[0]["address"], 16) + 1


def placed_bytes(order: str, allocations: str, kernel: str) -> int:
    """Where the arrays end that XLA itself keeps in VMEM while the kernel runs, from two tables.

    `order` has columns time and instruction_name, `allocations` size, offset, start_time, end_time.
    """
    (now,) = (
        int(row["time"])
        for row in csv.DictReader(order.splitlines())
        if row["instruction_name"].startswith(kernel)
    )
    rows = [
        {name: int(value) for name, value in row.items()}
        for row in csv.DictReader(allocations.splitlines())
    ]
    return max(
        (x["offset"] + x["size"] for x in rows if x["start_time"] <= now <= x["end_time"]),
        default=0,
    )
