"""Accelerators and their published figures.

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

from dataclasses import dataclass
from typing import Literal

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """Published figures of one accelerator; the module's docstring has their sources.

    `dimensions` are those of the torus that links form, 0 where all devices of a host reach each
    other alike. `wrap` is what the length of a torus' axis must be a multiple of to be a ring.
    """

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
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
# What JAX calls them. UNCONFIRMED: those of the A100, H800 and H200.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H800": "h800",
    "NVIDIA H200": "h200",
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a `jax.Device.device_kind` names, None for others."""
    return CHIPS.get(_KINDS.get(device_kind, ""))
