"""What Google Cloud calls the accelerators: node labels of GKE, types and images of TPU machines.

Sources: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and …/how-to/gpus;
cloud.google.com/tpu/docs/runtimes; `gcloud compute tpus queued-resources create --help`; xpk 1.16,
src/xpk/core/system_characteristics.py.
"""

from dataclasses import dataclass

from mmrl.errors import UserError
from mmrl.plan.devices import Topology

SPOT_LABEL = "cloud.google.com/gke-spot"
RESERVATION_LABEL = "cloud.google.com/reservation-name"


@dataclass(frozen=True)
class Tpu:
    """Names of one kind of TPU."""

    node_label: str  # of GKE, cloud.google.com/gke-tpu-accelerator
    kind: str  # of `gcloud … --type`, and the first part of xpk's --tpu-type
    runtime_version: str  # the machine image with Docker


TPUS = {
    "v4": Tpu("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base"),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": Tpu("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": Tpu("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}
# GKE, cloud.google.com/gke-accelerator.
GPUS = {
    "a100-80g": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
}


def shape_name(slice_: Topology) -> str:
    """`4x4x4`."""
    return "x".join(map(str, slice_.shape))


def hosts(slice_: Topology) -> tuple[int, int]:
    """Machines of a slice and devices of each.

    GKE's TPU machines have 4 chips, also of v5e and v6e, whose single machines could have 8; a
    slice of one chip has a machine of its own.
    """
    if slice_.platform == "tpu":
        each = min(slice_.count, 4)
        return slice_.count // each, each
    return slice_.shape[0], slice_.shape[1]


def node_selector(slice_: Topology) -> dict[str, str]:
    """Labels of the GKE nodes with these devices; `UserError` for what Google does not have."""
    name = slice_.chip.name
    if slice_.platform == "tpu":
        return {
            "cloud.google.com/gke-tpu-accelerator": TPUS[name].node_label,
            "cloud.google.com/gke-tpu-topology": shape_name(slice_),
        }
    if name not in GPUS:
        raise UserError(f"job.topology: GKE has no {name}; expected one of {', '.join(GPUS)}")
    return {"cloud.google.com/gke-accelerator": GPUS[name]}
