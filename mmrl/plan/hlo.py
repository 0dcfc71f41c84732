"""What a compiled program sends between devices, read from its HLO with loops counted.

XLA's own cost analysis counts a loop's body once and knows no collectives.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
_BYTES: dict[str, float] = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "bf16": 2,
    "f16": 2,
    "c64": 8,
    "c128": 16,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|body|calls|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# {{0,1},{2,3}}, [groups,devices]<=[…], or mesh['a'=2,'b'=4] {'a'}
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]<=|mesh\[([^\]]*)\] \{([^}]*)\})"
)


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    `shapes` of its results, `devices` that take part in a group, `bytes` of the results on one
    device (of the operands for a reduce-scatter, whose results are a part of them), and how many
    times the program executes it; None where a loop's length is not known before it runs.
    """

    kind: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    devices: int
    bytes: float
    times: int | None

    @property
    def sent(self) -> float:
        """Bytes that one device sends in one execution on a ring."""
        share = (self.devices - 1) / self.devices if self.devices else 1.0
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    opcode: str
    rest: str


def collectives(text: str, unknown_trips: int | None = None) -> list[Collective]:
    """The collectives of `compiled.as_text()`, each with the times it runs.

    `unknown_trips` stands for the length of a loop that HLO does not know, such as a while loop
    that ends on a condition.
    """
    entry, computations = _parse(text)
    return list(_walk(entry, computations, 1, unknown_trips))


def sent_by_kind(found: Iterable[Collective]) -> dict[str, float]:
    """Bytes that one device sends in the whole program, by kind; loops of unknown length once."""
    total = dict.fromkeys(KINDS, 0.0)
    for collective in found:
        total[collective.kind] += collective.sent * (collective.times or 1)
    return {kind: sent for kind, sent in total.items() if sent}


def _parse(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_Instruction(*found.groups()))
    return entry, computations


def _walk(
    name: str, computations: dict[str, list[_Instruction]], times: int | None, unknown: int | None
) -> Iterator[Collective]:
    for instruction in computations.get(name, ()):
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            yield _collective(kind, instruction, times)
            continue
        repeats: int | None = 1
        if instruction.opcode == "while":
            trips = _TRIPS.search(instruction.rest)
            repeats = int(trips[1]) if trips else unknown
        inner = None if times is None or repeats is None else times * repeats
        for one, several in _CALLED.findall(instruction.rest):
            for called in [one] if one else re.findall(r"%?([\w.\-]+)", several):
                yield from _walk(called, computations, inner, unknown)


def _collective(kind: str, instruction: _Instruction, times: int | None) -> Collective:
    arrays = [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(instruction.result)
    ]
    if instruction.opcode.endswith("-start") and len(arrays) > 1 and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands come first, then results
    devices = _group_size(instruction.rest)
    found = Collective(
        kind=kind,
        name=instruction.name,
        shapes=tuple(shape for _, shape in arrays),
        devices=devices,
        bytes=sum(_size(dtype) * math.prod(shape) for dtype, shape in arrays),
        times=times,
    )
    return replace(found, bytes=found.bytes * devices) if kind == "reduce-scatter" else found


def _group_size(attributes: str) -> int:
    """Devices that take part in one group; 0 where the text does not say."""
    groups = _GROUPS.search(attributes)
    if groups is None:
        return 0
    members, count, axes, names = groups.groups()
    if count is not None:
        return int(count)
    if axes is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", names))
    return len(members.split(","))


def _size(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0
