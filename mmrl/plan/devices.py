"""Slices of accelerators that a plan can be made for: `v5p:8x8x8`, `h100:64`, `cpu:8`."""

import itertools
import math
import os
from dataclasses import dataclass

from mmrl.chips import CHIPS, Chip
from mmrl.errors import UserError, nearest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e's and v6e's slices
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # v4's and v5p's below a cube of 64


@dataclass(frozen=True)
class Topology:
    """A slice: `count` devices of one chip.

    `shape` is the torus' for TPUs and (hosts, devices of one) for GPUs. `name` is what
    `jax.experimental.topologies.get_topology_desc` takes: "v5p:8x8x8" as libtpu's topology name,
    "1x8x8" (slices x hosts x devices of one) as the GPU compiler's topology. libtpu takes the two
    cores of a v4 for devices unless it is also given chip_config_name="megacore".
    """

    chip: Chip
    shape: tuple[int, ...]
    name: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        return self.chip.platform

    @property
    def label(self) -> str:
        """As a user types it."""
        return self.name if self.platform == "tpu" else f"{self.chip.name}:{self.count}"

    @property
    def hosts(self) -> int:
        return -(-self.count // self.chip.per_host)

    def bandwidth(self, group: int | None = None, span: int = 0) -> float:
        """Bytes/s that each device sends in a collective of `group` devices, all if None.

        GPUs: NVLink inside a host, the network adapter beyond; `span` is how far apart the group's
        devices are where they are no neighbours. TPUs: the links of as many axes as
        the group needs, longest first, both ways round where an axis is a ring and else one way.
        """
        group = self.count if group is None else group
        chip = self.chip
        if chip.platform != "tpu":
            within = max(group, span) <= chip.per_host
            return chip.link_bandwidth if within else chip.host_bandwidth
        of_axis, total, reached = chip.link_bandwidth / chip.dimensions, 0.0, 1
        for side in sorted(self.shape, reverse=True):
            if side > 1 and (reached < group or not total):
                total += of_axis if side % chip.wrap == 0 else of_axis / 2
                reached *= side
        return total or math.inf


def parse_topology(text: str) -> Topology:
    """The slice that `text` names: `CHIP:AxB`, `CHIP:AxBxC` (TPUs) or `CHIP:COUNT` (GPUs, "cpu").

    Raises `UserError` for an unknown chip or a shape that the chip is not sold in; it names the
    nearest that is.
    """
    name, colon, shape = text.strip().lower().partition(":")
    if name not in (*CHIPS, "cpu"):
        names = (*CHIPS, "cpu")
        raise UserError(
            f"topology {text!r}: no chip {name!r}; expected one of {', '.join(names)}."
            f"{nearest(name, names)}"
        )
    if name == "cpu":
        return _cpus(shape, text)
    chip = CHIPS[name]
    parts = shape.split("x")
    if not colon or not all(part.isdecimal() for part in parts):
        example = "h100:64" if chip.platform == "gpu" else _nearest_shape(chip, 64)
        raise UserError(f"topology {text!r}: expected CHIP:SHAPE, as in {example}")
    sides = tuple(int(part) for part in parts)
    return _gpus(chip, sides, text) if chip.platform == "gpu" else _tpus(chip, sides, text)


def _cpus(count: str, text: str) -> Topology:
    """This machine as so many devices, with figures that are only nominal."""
    if not count.isdecimal() or not 1 <= int(count) <= 1024:
        raise UserError(f"topology {text!r}: expected a number of devices, as in cpu:8")
    devices = int(count)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    chip = Chip(
        "cpu",
        "cpu",
        hbm_bytes=memory / devices,
        peak_bfloat16=1e11 / devices,
        peak_float32=1e11 / devices,
        hbm_bandwidth=2e10 / devices,
        link_bandwidth=1e10 / devices,
        host_bandwidth=1e10 / devices,
        dollars_per_hour=0.0,
        per_host=devices,
        most=1024,
    )
    return Topology(chip, (devices,), str(devices))


def slices(chip: Chip) -> list[Topology]:
    """All slices of a TPU; of GPUs powers of two."""
    if chip.platform == "tpu":
        return [_tpus(chip, shape, "") for shape in _shapes(chip)]
    counts = (1 << n for n in range(int(math.log2(chip.most)) + 1))
    return [_gpus(chip, (count,), "") for count in counts]


def _gpus(chip: Chip, sides: tuple[int, ...], text: str) -> Topology:
    count = math.prod(sides)
    if len(sides) != 1 or not 1 <= count <= chip.most or (count > 8 and count % 8):
        near = min(max(round(count / 8), 1), chip.most // 8) * 8
        raise UserError(
            f"topology {text!r}: expected a number of GPUs, at most 8 or a multiple of 8 (hosts of "
            f"8). Did you mean {chip.name}:{near}?"
        )
    shape = (1, count) if count <= chip.per_host else (count // 8, 8)
    return Topology(chip, shape, f"1x{shape[0]}x{shape[1]}")


def _tpus(chip: Chip, sides: tuple[int, ...], text: str) -> Topology:
    if sides not in _shapes(chip):
        kind = "two sides" if chip.dimensions == 2 else "three sides, whole cubes of 4x4x4 above 32"
        raise UserError(
            f"topology {text!r}: {chip.name} slices have {kind}, in rising order, and at most "
            f"{chip.most:,} chips. Did you mean {_nearest_shape(chip, math.prod(sides))}?"
        )
    return Topology(chip, sides, f"{chip.name}:{'x'.join(map(str, sides))}")


def _shapes(chip: Chip) -> list[tuple[int, ...]]:
    """The slices of a TPU (cloud.google.com/tpu/docs/{v5e,v6e,v4,v5p}, "Configurations")."""
    names = _FLAT if chip.dimensions == 2 else _SMALL
    shapes = [tuple(map(int, name.split("x"))) for name in names]
    if chip.dimensions == 3:
        sides = itertools.combinations_with_replacement(range(4, 257, 4), 3)
        shapes += [shape for shape in sides if math.prod(shape) <= chip.most]
    return shapes


def _nearest_shape(chip: Chip, count: int) -> str:
    """The slice nearest in size, the most cubic of those."""
    best = min(_shapes(chip), key=lambda s: (abs(math.prod(s) - count), max(s) - min(s)))
    return f"{chip.name}:{'x'.join(map(str, best))}"
