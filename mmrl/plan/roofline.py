"""Seconds and dollars of a phase: the slowest of products, memory and links.

    seconds = max(FLOPs / (peak · compute), bytes / (bandwidth · memory), sent / (link · network))

with an assumed efficiency for each. Perfect overlap of the three is assumed too, so a phase is
bound by one of them and takes no less than this.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mmrl.plan.devices import Topology

SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True)
class Efficiency:
    """The share of each published figure that a program is assumed to reach.

    `latency` are seconds that each collective takes at least.

    Half of the matrix units' peak is what well-tuned training of large models reports (Llama 3's 38
    to 43%, arXiv 2407.21783 table 4; PaLM's 57.8% with rematerialisation, arXiv 2204.02311); four
    fifths of memory and links is usual for large transfers. Assumptions, printed with every result.
    """

    compute: float = 0.5
    memory: float = 0.8
    network: float = 0.8
    latency: float = 10e-6

    def __str__(self) -> str:
        return (
            f"assumed: {self.compute:.0%} of peak FLOP/s, {self.memory:.0%} of memory bandwidth, "
            f"{self.network:.0%} of link bandwidth, {self.latency * 1e6:g} µs a collective"
        )


class Transfer(NamedTuple):
    """What one device sends in collectives of `devices`: bytes, how many collectives, and how far.

    `span` is the distance between the first and the last of the devices, 0 where they are
    neighbours; it decides between a host's links and the network.
    """

    devices: int
    bytes: float
    times: float = 0.0
    span: int = 0


@dataclass(frozen=True)
class Phase:
    """What one device does in a phase.

    `flops` are all products, of which `float32_flops` at highest precision; `hbm_bytes` are read
    and written; `sent` is what leaves the device in collectives.
    """

    name: str
    flops: float
    hbm_bytes: float
    float32_flops: float = 0.0
    sent: tuple[Transfer, ...] = ()


@dataclass(frozen=True)
class Times:
    """Seconds of a phase by resource."""

    name: str
    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        """The resource that sets the time: "compute", "memory" or "network"."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def times(phase: Phase, topology: Topology, efficiency: Efficiency | None = None) -> Times:
    """Seconds of a phase on each device of the slice; all devices do the same."""
    chip, efficiency = topology.chip, efficiency or Efficiency()
    fast = (phase.flops - phase.float32_flops) / chip.peak_bfloat16
    slow = phase.float32_flops / chip.peak_float32
    sent = [x for x in phase.sent if x.devices > 1]
    network = sum(x.bytes / topology.bandwidth(x.devices, x.span) for x in sent)
    return Times(
        phase.name,
        compute=(fast + slow) / efficiency.compute,
        memory=phase.hbm_bytes / (chip.hbm_bandwidth * efficiency.memory),
        network=network / efficiency.network + efficiency.latency * sum(x.times for x in sent),
    )


@dataclass(frozen=True)
class Cost:
    """A step of all phases one after the other, and a run of `steps` of them."""

    phases: tuple[Times, ...]
    devices: int
    peak: float  # bfloat16 FLOP/s of a device
    tokens: float  # of a step, on all devices
    model_flops: float  # of a step, on all devices, recomputation not counted
    steps: int
    dollars_per_hour: float  # of a device

    @property
    def step_seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens / self.step_seconds / self.devices

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: useful FLOP/s over the bfloat16 peak (arXiv 2204.02311, B)."""
        return self.model_flops / (self.step_seconds * self.devices * self.peak)

    @property
    def seconds(self) -> float:
        return self.step_seconds * self.steps

    @property
    def device_hours(self) -> float:
        return self.seconds * self.devices / SECONDS_AN_HOUR

    @property
    def dollars(self) -> float:
        return self.device_hours * self.dollars_per_hour


def cost(
    phases: Iterable[Phase],
    topology: Topology,
    *,
    tokens: float,
    model_flops: float,
    steps: int = 1,
    dollars_per_hour: float | None = None,
    efficiency: Efficiency | None = None,
) -> Cost:
    """Time and dollars of `steps` steps; the price is that of the chip's table unless given."""
    price = topology.chip.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
    return Cost(
        phases=tuple(times(phase, topology, efficiency) for phase in phases),
        devices=topology.count,
        peak=topology.chip.peak_bfloat16,
        tokens=tokens,
        model_flops=model_flops,
        steps=steps,
        dollars_per_hour=price,
    )


def device_dollars(devices: int, days: float, dollars_per_hour: float) -> float:
    """The price of devices that run day and night."""
    return devices * days * 24 * dollars_per_hour


def all_gather_sent(size: float, devices: int) -> float:
    """Bytes that each of `devices` sends until all hold an array of `size` bytes; of a
    reduce-scatter likewise, and half of an all-reduce."""
    return size * (devices - 1) / devices
