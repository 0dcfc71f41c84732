"""What is to run and where: one description, from which every launcher's input is rendered."""

import re
from dataclasses import dataclass, field
from typing import Literal

from mmrl.errors import UserError
from mmrl.plan.devices import Topology, parse_topology

STOPPED_EXIT_STATUS = 143  # 128 + SIGTERM: saved and asked to stop, so start it again
USER_ERROR_EXIT_STATUS = 2  # a mistake of the user's, which a restart would repeat
# Kubernetes and xpk allow 40 characters, which leaves room for what JobSet appends.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_WORD = re.compile(r"[\w.,:@/+%=#-]+")


@dataclass(frozen=True)
class Job:
    """A run of `mmrl.train` on a TPU slice or on GPUs.

    `config`, `workdir` and `overrides` are as on the command line of `mmrl.train`. `topology` is
    `v5p:4x4x4` or `h100:64`, as `mmrl.plan` takes it; `slices` TPU slices are joined over the data
    centre's network.

    `storage` is what all machines mount at `storage_path`, above `workdir`: a PersistentVolumeClaim
    (jobset), a storage of xpk's (xpk), an NFS export `HOST:/PATH` (queued_resources), a directory
    (slurm, with a `container`). The trainer writes files: a bucket must be mounted as one.

    A SIGTERM comes `grace_seconds` before the end: time for the current step and a checkpoint. The
    same command starts again at most `max_restarts` times. After `hours` the run is asked to stop;
    slurm queues it again, jobset ends.

    `price` in dollars a device-hour gives the cost. `spot` takes machines that can be taken away;
    they leave less grace: Google's 30 s. `environment` adds variables, over those of
    `launch.platform_flags`; flags in XLA_FLAGS and LIBTPU_INIT_ARGS are appended.
    """

    name: str = ""
    config: str = ""
    workdir: str = ""
    topology: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    slices: int = 1
    storage: str | None = None
    storage_path: str = "/storage"
    grace_seconds: int = 300
    max_restarts: int = 10
    hours: float | None = None
    price: float | None = None
    spot: bool = False
    reservation: str | None = None
    project: str | None = None  # xpk, queued_resources
    zone: str | None = None  # xpk, queued_resources
    cluster: str | None = None  # xpk
    namespace: str = "default"  # jobset
    queue: str | None = None  # jobset: Kueue's LocalQueue
    service_account: str | None = None  # jobset, queued_resources
    partition: str | None = None  # slurm
    account: str | None = None  # slurm
    qos: str | None = None  # slurm
    container: Literal["pyxis", "apptainer"] | None = None  # slurm
    python: str = "python"

    def __post_init__(self):
        if self.name and not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r}: at most 40 of a-z, 0-9 and -, beginning with a letter and "
                "not ending with -"
            )
        if self.topology and self.shape.platform != "tpu" and self.slices > 1:
            raise ValueError(f"slices={self.slices} is for TPUs; topology is {self.topology}")
        if self.workdir.startswith(("gs://", "s3://")):
            raise ValueError(
                f"workdir {self.workdir}: the trainer writes files; mount the bucket and give the "
                "path where it is mounted"
            )
        if not re.fullmatch(r"/[^:,\s]*", self.storage_path):
            raise ValueError(f"storage_path {self.storage_path!r}: expected an absolute path")
        if self.storage and self.workdir and not self._stored():
            raise ValueError(
                f"workdir {self.workdir} is not under storage_path {self.storage_path}, where "
                "storage is mounted: the run would be lost with its machines"
            )
        for name, least, most in _BOUNDS:
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, got {getattr(self, name)}")
        for name in ("hours", "price"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in _WORDS:
            if (value := getattr(self, name)) and not _WORD.fullmatch(value):
                raise ValueError(f"{name} {value!r}: no spaces, quotes or other signs")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"environment: {name!r} is not a variable's name")

    def _stored(self) -> bool:
        return f"{self.workdir}/".startswith(f"{self.storage_path.rstrip('/')}/")

    @property
    def shape(self) -> Topology:
        """One slice."""
        return parse_topology(self.topology)

    @property
    def devices(self) -> int:
        return self.shape.count * self.slices

    def command(self, module: str = "mmrl.train") -> list[str]:
        """The trainer's command line; the same one continues the run."""
        return [
            self.python,
            "-u",
            "-m",
            module,
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            f"--stopped_exit_status={STOPPED_EXIT_STATUS}",
            *(f"--config.{key}={value}" for key, value in self.overrides.items()),
        ]

    def cost(self) -> str:
        """What the job takes, in a line."""
        devices = f"{self.devices} {self.shape.chip.name}"
        if self.price is None:
            return devices
        hourly = self.devices * self.price
        if self.hours is None:
            return f"{devices}: ${hourly:,.2f} an hour, without a limit of hours"
        return f"{devices}: ${hourly:,.2f} an hour, ${hourly * self.hours:,.2f} in {self.hours:g} h"


_BOUNDS = ("slices", 1, 1000), ("grace_seconds", 1, 65_535), ("max_restarts", 0, 1000)
_WORDS = (
    "image", "storage", "storage_path", "reservation", "project", "zone", "cluster", "namespace",
    "queue", "service_account", "partition", "account", "qos",
)  # fmt: skip


def require(job: Job, target: str, *names: str) -> None:
    """Raises `UserError` for the first of `names` that the job leaves open."""
    for name in ("name", "config", "workdir", "topology", *names):
        if not getattr(job, name):
            raise UserError(f"job.{name} is not set; {target} needs it: --job.{name}=…")


def require_platform(job: Job, target: str, platform: Literal["tpu", "gpu"]) -> None:
    """Raises `UserError` if the job's devices are not of `platform`."""
    if job.shape.platform != platform:
        raise UserError(
            f"job.topology={job.topology}: {target} starts {platform.upper()} jobs; "
            f"choose another --target for {job.shape.chip.name}"
        )
