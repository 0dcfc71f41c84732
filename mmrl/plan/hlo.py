"""What a compiled program sends between devices, read from its HLO with loops counted.

XLA's own cost analysis counts a loop's body once and knows no collectives.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

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
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
# {{0,1},{2,3}}, [groups,devices]<=[4,2]T(1,0), or mesh['a'=2,'b'=4] {'a'}
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\))? \{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    `shapes` of its results, `devices` that take part in a group, `bytes` of the results on one
    device (of the operands for a reduce-scatter, whose results are a part of them, and of the
    smaller of both for a ragged all-to-all, whose larger has room for the worst case), and how many
    times the program executes it; None where a loop's length is not known before it runs, or what
    the caller said for such loops, and then `in_unknown_loop`. `span` is how many devices lie from
    the first of a group to its last.
    """

    kind: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    devices: int
    bytes: float
    times: int | None
    in_unknown_loop: bool = False
    span: int = 0

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
    name: str,
    computations: dict[str, list[_Instruction]],
    times: int | None,
    unknown: int | None,
    inside: bool = False,
) -> Iterator[Collective]:
    """The collectives of a computation that runs `times`; `inside` a loop of unknown length."""
    for instruction in computations.get(name, ()):
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            found = replace(_collective(kind, instruction, times), in_unknown_loop=inside)
            if kind == "ragged-all-to-all":
                # There is room for all rows of all devices; no more are sent than one has.
                operand = instruction.rest.partition(",")[0].lstrip("%")
                sizes = [x.result for x in computations[name] if x.name == operand]
                found = replace(found, bytes=min([found.bytes, *map(_result_bytes, sizes)]))
            yield found
            continue
        repeats: int | None = 1
        endless = False
        if instruction.opcode == "while":
            known = _trip_count(instruction, computations)
            repeats, endless = (unknown, True) if known is None else (known, False)
        inner = None if times is None or repeats is None else times * repeats
        for one, several in _CALLED.findall(instruction.rest):
            for called in [one] if one else re.findall(r"%?([\w.\-]+)", several):
                yield from _walk(called, computations, inner, unknown, inside or endless)


def _trip_count(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int | None:
    """How often a while loop runs: as XLA noted, or else the constant that it counts up to."""
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1])
    condition = _CONDITION.search(loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    if not instructions or "direction=LT" not in instructions[-1].rest:
        return None
    limit = instructions[-1].rest.partition(")")[0].split(",")[-1].strip().lstrip("%")
    for instruction in instructions:
        if instruction.name == limit and instruction.opcode == "constant":
            return int(instruction.rest.partition(")")[0])
    return None


def _collective(kind: str, instruction: _Instruction, times: int | None) -> Collective:
    arrays = [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(instruction.result)
    ]
    if instruction.opcode.endswith("-start") and len(arrays) > 1 and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands come first, then results
    group = _group(instruction.rest)
    devices = len(group)
    found = Collective(
        kind=kind,
        name=instruction.name,
        shapes=tuple(shape for _, shape in arrays),
        devices=devices,
        bytes=sum(_size(dtype) * math.prod(shape) for dtype, shape in arrays),
        times=times,
        span=max(group) - min(group) + 1 if group else 0,
    )
    return replace(found, bytes=found.bytes * devices) if kind == "reduce-scatter" else found


def _result_bytes(result: str) -> float:
    arrays = _ARRAY.findall(result)
    return sum(
        _size(dtype) * math.prod(map(int, filter(None, d.split(",")))) for dtype, d in arrays
    )


def _group(attributes: str) -> list[int]:
    """The devices of the first group that take part together; none where the text does not say."""
    if listed := _LISTED.search(attributes):
        return [int(n) for n in listed[1].split(",") if n]
    if counted := _COUNTED.search(attributes):
        shape, sizes, order = (
            [int(n) for n in (text or "").split(",") if n] for text in counted.groups()
        )
        devices = np.arange(math.prod(sizes)).reshape(sizes)
        devices = devices.transpose(order) if order else devices
        return devices.reshape(shape)[0].tolist()
    if named := _NAMED.search(attributes):
        mesh = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = re.findall(r"'(\w+)'", named[2])
        devices = np.arange(math.prod(mesh.values())).reshape(list(mesh.values()))
        first = tuple(slice(None) if name in axes else 0 for name in mesh)
        return devices[first].ravel().tolist()
    return []


def _size(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0
