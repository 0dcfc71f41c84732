"""Dollars per million tokens in and out, by the roofline of prefill and decode.

Assumptions, beside those of `Efficiency`:

- Tensor parallelism over the whole slice: every device holds and reads its share of weights and
  cache (by heads of keys and values, by rows beyond their number: even for large batches only), and
  each layer has two all-reduces of the activations, in bfloat16.
- Products run at the bfloat16 peak, also of weights that are stored in fewer bytes; those of router
  and head in float32, as the decoder computes them.
- Prefill reads one prompt at a time, nothing of it cached before; decode runs a full batch, each
  row at its mean context. Prefill and decode take turns on the slice or have slices of their own:
  the price of a token is the same.
- Every device-second is sold: no idle time, no margin. A list price has both. Latencies of kernels
  and links are left out, so small batches look faster than they are.
"""

from dataclasses import dataclass

from mmrl.chips import GIB
from mmrl.errors import UserError
from mmrl.models import DecoderConfig, parameter_count
from mmrl.plan.arithmetic import Flops, decode_flops, forward_flops
from mmrl.plan.devices import Topology
from mmrl.plan.memory import cache_bytes, weights_read
from mmrl.plan.roofline import (
    SECONDS_AN_HOUR,
    Efficiency,
    Phase,
    Times,
    Transfer,
    all_gather_sent,
    times,
)

# Dollars per million tokens (in, out); M2's announcement compares itself with the second.
LIST_PRICES = {"MiniMax-M2's list": (0.30, 1.20), "Claude Sonnet's list": (3.0, 15.0)}


@dataclass(frozen=True)
class Serving:
    """A model on a slice at a batch: times of one prompt and of one decode step, and prices."""

    topology: Topology
    batch: int
    prompt: int
    response: int
    prefill: Times
    decode: Times
    bytes_per_device: float
    dollars_per_hour: float  # of a device

    @property
    def _dollars_per_second(self) -> float:
        return self.topology.count * self.dollars_per_hour / SECONDS_AN_HOUR

    @property
    def dollars_in(self) -> float:
        """Dollars per million prompt tokens."""
        return 1e6 * self._dollars_per_second * self.prefill.seconds / self.prompt

    @property
    def dollars_out(self) -> float:
        """Dollars per million response tokens."""
        return 1e6 * self._dollars_per_second * self.decode.seconds / self.batch

    @property
    def tokens_per_second_per_row(self) -> float:
        """How fast one response is written."""
        return 1 / self.decode.seconds


def serving(
    config: DecoderConfig,
    topology: Topology,
    *,
    batch: int,
    prompt: int = 8192,
    response: int = 2048,
    weight_bytes: float = 2.0,
    cache_itemsize: int = 2,
    dollars_per_hour: float | None = None,
    efficiency: Efficiency | None = None,
) -> Serving:
    """The price of tokens; `weight_bytes` is what one weight is stored and read in (FP8: 1).

    Raises `UserError` where weights and the batch's cache do not fit the slice.
    """
    devices, chip = topology.count, topology.chip
    row = cache_bytes(config, prompt + response, itemsize=cache_itemsize)
    weights = weight_bytes * parameter_count(config)[0]
    needed = (weights + batch * row) / devices
    if needed > chip.hbm_bytes:
        most = int((devices * chip.hbm_bytes - weights) // row)
        raise UserError(
            f"serving on {topology.label}: batch {batch} with {prompt + response:,} tokens a row "
            f"needs {needed / GIB:.1f} GiB a device, {chip.name} has {chip.hbm_bytes / GIB:.1f}: "
            + (f"at most {most} rows fit" if most > 0 else "take a larger slice or fewer bytes")
        )
    context = prompt + response // 2
    of_context = cache_bytes(config, context, itemsize=cache_itemsize)
    of_slots = of_context - cache_bytes(config, 0)
    states = of_context - of_slots

    def phase(name: str, flops: Flops, tokens: int, moved: float) -> Times:
        activations = 2 * config.num_layers * tokens * config.hidden_size * 2
        sent = 2 * all_gather_sent(activations, devices)  # an all-reduce sends twice as much
        one = Phase(
            name,
            flops=flops.total / devices,
            float32_flops=flops.float32 / devices,
            hbm_bytes=(weight_bytes * weights_read(config, tokens) + moved) / devices,
            sent=(Transfer(devices, sent),),
        )
        return times(one, topology, efficiency)

    return Serving(
        topology,
        batch,
        prompt,
        response,
        # A prompt's cache is written once; a decode step reads it and rewrites the states.
        prefill=phase("prefill", forward_flops(config, 1, prompt, head=False), prompt, of_context),
        decode=phase(
            "decode",
            decode_flops(config, batch, 1, context=context),
            batch,
            batch * (of_slots + 2 * states),
        ),
        bytes_per_device=needed,
        dollars_per_hour=chip.dollars_per_hour if dollars_per_hour is None else dollars_per_hour,
    )
