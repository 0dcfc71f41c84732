"""Accelerators that a plan can be made for, and slices of them: `v5p:8x8x8`, `h100:64`.

Sources of the figures. "Pages" are cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.

- `hbm_bytes`, what a program may use. TPUs: the limit that XLA's own message names ("Used 33.07G
  of 31.25G hbm"), below the data sheets' 16, 32 and 95 GB. H100: its device memory in XLA's target
  description, H800 likewise. A100, H200: UNCONFIRMED, the data sheets' 80 GiB and 141 GB, of which
  the driver keeps some.
- `peak_bfloat16`, dense: the pages, NVIDIA's data sheets; H800 as H100.
- `peak_float32`, of products at precision "highest". TPUs: six bfloat16 passes, derived. GPUs: the
  data sheets' FP32, without tensor cores.
- `hbm_bandwidth`: as `peak_bfloat16`.
- `link_bandwidth`, out of one device over all its links. TPUs: half of the pages' "bidirectional
  ICI bandwidth per chip"; v4 UNCONFIRMED, six links of 50 GB/s. GPUs: half of NVLink's total, which
  is 900 GB/s, 600 for the A100, 400 for the H800.
- `host_bandwidth`, out of one device to those that its links do not reach. v5p: 50 Gbit/s a chip
  (page). v5e: 2 adapters of 100 Gbit/s for 8 chips (page). UNCONFIRMED: v6e, 4 of 200 Gbit/s for 8
  chips, and v4, as v5p. GPUs: an adapter of 400 Gbit/s each (DGX H100), of 200 (DGX A100).
- `dollars_per_hour`, on demand, in the United States where the list has regions. v6e: Google's list
  in SkyPilot's catalogue. v4, v5e, v5p: the same three figures in three public calculators. H800:
  what DeepSeek-V3's report assumes (arXiv 2412.19437, table 1). A100: Lambda's $14.32 for eight.
  H100: RunPod's $22.32 for eight in April 2026, the market then being $2.49 to $3.99. H200:
  UNCONFIRMED, one provider's list. Prices move: a plan takes the user's own.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from mmrl.errors import UserError, nearest

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """Published figures of one accelerator; the module's docstring has their sources.

    `dimensions` are those of the torus that links form, 0 where all devices of a host reach each
    other alike. `wrap` is what the length of a torus' axis must be a multiple of to be a ring.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    hbm_bytes: float
    peak_bfloat16: float  # FLOP/s
    peak_float32: float  # FLOP/s
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s
    host_bandwidth: float  # bytes/s
    dollars_per_hour: float
    per_host: int
    most: int  # devices in one job on one slice; for GPUs what is still planned
    dimensions: int = 0
    wrap: int = 0

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products of `dtype`."""
        return self.peak_float32 if dtype == "float32" else self.peak_bfloat16


def _tpu(name, dimensions, hbm_gib, peak, bandwidth, link, host, dollars, most) -> Chip:
    return Chip(
        name,
        "tpu",
        hbm_gib * GIB,
        peak_bfloat16=peak,
        peak_float32=peak / 6,
        hbm_bandwidth=bandwidth,
        link_bandwidth=link,
        host_bandwidth=host,
        dollars_per_hour=dollars,
        per_host=4 if dimensions == 3 else 8,
        most=most,
        dimensions=dimensions,
        wrap=4 if dimensions == 3 else 16,
    )


def _gpu(name, hbm_bytes, peak, float32, bandwidth, link, host, dollars) -> Chip:
    return Chip(
        name,
        "gpu",
        hbm_bytes,
        peak_bfloat16=peak,
        peak_float32=float32,
        hbm_bandwidth=bandwidth,
        link_bandwidth=link,
        host_bandwidth=host,
        dollars_per_hour=dollars,
        per_host=8,
        most=65_536,
    )


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", 3, 30.75, 275e12, 1200e9, 300e9, 6.25e9, 3.22, 4096),
        _tpu("v5e", 2, 15.75, 197e12, 819e9, 200e9, 3.125e9, 1.20, 256),
        _tpu("v5p", 3, 95.74, 459e12, 2765e9, 600e9, 6.25e9, 4.20, 6144),
        _tpu("v6e", 2, 31.25, 918e12, 1638e9, 400e9, 12.5e9, 2.70, 256),
        _gpu("a100-80g", 80 * GIB, 312e12, 19.5e12, 2039e9, 300e9, 25e9, 1.79),
        _gpu("h100", 84_978_434_048, 989e12, 67e12, 3350e9, 450e9, 50e9, 2.79),
        _gpu("h800", 84_978_434_048, 989e12, 67e12, 3350e9, 200e9, 50e9, 2.00),
        _gpu("h200", 141e9, 989e12, 67e12, 4800e9, 450e9, 50e9, 3.37),
    )
}
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

    def bandwidth(self, group: int | None = None) -> float:
        """Bytes/s that each device sends in a collective of `group` devices, all if None.

        GPUs: NVLink inside a host, the network adapter beyond. TPUs: the links of as many axes as
        the group needs, longest first, both ways round where an axis is a ring and else one way.
        """
        group = self.count if group is None else group
        chip = self.chip
        if chip.platform == "gpu":
            return chip.link_bandwidth if group <= chip.per_host else chip.host_bandwidth
        of_axis, total, reached = chip.link_bandwidth / chip.dimensions, 0.0, 1
        for side in sorted(self.shape, reverse=True):
            if side > 1 and (reached < group or not total):
                total += of_axis if side % chip.wrap == 0 else of_axis / 2
                reached *= side
        return total or math.inf


def parse_topology(text: str) -> Topology:
    """The slice that `text` names: `CHIP:AxB`, `CHIP:AxBxC` (TPUs) or `CHIP:COUNT` (GPUs).

    Raises `UserError` for an unknown chip or a shape that the chip is not sold in; it names the
    nearest that is.
    """
    name, colon, shape = text.strip().lower().partition(":")
    if name not in CHIPS:
        raise UserError(
            f"topology {text!r}: no chip {name!r}; expected one of {', '.join(CHIPS)}."
            f"{nearest(name, CHIPS)}"
        )
    chip = CHIPS[name]
    parts = shape.split("x")
    if not colon or not all(part.isdecimal() for part in parts):
        example = "h100:64" if chip.platform == "gpu" else _nearest_shape(chip, 64)
        raise UserError(f"topology {text!r}: expected CHIP:SHAPE, as in {example}")
    sides = tuple(int(part) for part in parts)
    return _gpus(chip, sides, text) if chip.platform == "gpu" else _tpus(chip, sides, text)


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
