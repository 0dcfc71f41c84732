"""What a compiled program keeps in a device's memory, from XLA's own listing of its buffers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ALLOCATION = re.compile(r"allocation \d+: size (?P<size>\d+), (?P<kind>.*):$")
_COLOR = re.compile(r"color (\d+)")
_VALUE = re.compile(
    r" value: <\d+ (?P<name>[\w.\-]+)(?:\{[\d,]*\})?.*\(size=(?P<size>\d+),offset=(?P<offset>\d+)\)"
    r": (?P<shape>\w+\[[\d,]*\])"
)
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"')


@dataclass(frozen=True)
class Buffer:
    """One temporary array of a device: its shape there, and the operation that makes it."""

    bytes: int
    shape: str
    operation: str


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory while a program runs.

    `outputs` are those that do not take the place of a donated argument. `largest` explain the
    temporaries: the largest arrays that lie beside each other.
    """

    arguments: int
    outputs: int
    temporaries: int
    largest: tuple[Buffer, ...] = ()

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries


def memory(assignment: str, program: str, count: int = 5) -> Memory:
    """Reads XLA's `buffer-assignment.txt` of a program and the program's text.

    Buffers of other memory spaces than the device's main one, as a TPU's VMEM, do not count.
    """
    arguments = outputs = temporaries = 0
    arrays: list[tuple[int, int, str, str]] = []  # size, offset, shape, name
    for size, kind, values in _allocations(assignment):
        color = _COLOR.search(kind)
        if (color and color[1] != "0") or "thread-local" in kind or "constant" in kind:
            continue
        if "parameter" in kind:
            arguments += size
        elif "preallocated-temp" in kind:
            temporaries += size
            arrays += values
        elif "maybe-live-out" in kind:
            outputs += size
    return Memory(arguments, outputs, temporaries, tuple(_largest(arrays, program, count)))


def _allocations(text: str) -> Iterator[tuple[int, str, list]]:
    current: tuple[int, str, list] | None = None
    for line in text.splitlines():
        if found := _ALLOCATION.match(line):
            if current:
                yield current
            current = int(found["size"]), found["kind"], []
        elif current and (found := _VALUE.match(line)):
            value = int(found["size"]), int(found["offset"]), found["shape"], found["name"]
            current[2].append(value)
        elif current and not line.startswith(" "):
            break
    if current:
        yield current


def _largest(arrays: list, program: str, count: int) -> Iterator[Buffer]:
    """The largest arrays, of those that share a place the largest alone."""
    taken: list[tuple[int, int, str, str]] = []
    for size, offset, shape, name in sorted(arrays, reverse=True):
        if len(taken) == count:
            break
        if all(offset + size <= o or o + s <= offset for s, o, *_ in taken):
            taken.append((size, offset, shape, name))
    names = {name for *_, name in taken}
    lines = map(_OPERATION.match, program.splitlines())
    operations = {found[1]: found[2] for found in lines if found and found[1] in names}
    for size, _, shape, name in taken:
        yield Buffer(size, shape, _readable(operations.get(name, "")) or name)


def _readable(operation: str) -> str:
    """An operation's path without what JAX's own transformations add to it."""
    parts = operation.split("/")[1:]
    noise = {
        "while",
        "body",
        "closed_call",
        "checkpoint",
        "jvp()",
        "transpose(jvp())",
        "rematted_computation",
    }
    backward = "backward: " if "transpose(jvp())" in parts else ""
    kept = [part for part in parts if part not in noise]
    return backward + "/".join(kept) if kept else backward.removesuffix(": ")
