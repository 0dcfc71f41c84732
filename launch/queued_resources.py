"""TPU machines as a queued resource of Google Cloud, without a cluster.

Every machine of the slice runs the same start-up script: it mounts the storage and starts the
trainer's container as a systemd service. At a shutdown, also of a spot machine, systemd sends
SIGTERM and waits; after a crash or a reboot the service starts again.
"""

from launch import google, platform_flags, shell
from launch.job import USER_ERROR_EXIT_STATUS, Job, require, require_platform
from mmrl.errors import UserError

_SCRIPT = """\
#!/usr/bin/env bash
# Start-up script of every machine of {name}; it runs at each boot.
set -euo pipefail
storage={storage}
mountpoint={mountpoint}
registry={registry}
if ! command -v mount.nfs > /dev/null; then
  apt-get update
  apt-get install --yes nfs-common
fi
install -d /opt/mmrl "$mountpoint"
mountpoint -q "$mountpoint" || mount -t nfs -o hard "$storage" "$mountpoint"
if [[ -n "$registry" ]]; then
  HOME=/root gcloud auth configure-docker --quiet "$registry"
fi
cat > /opt/mmrl/run.sh <<'END_OF_RUN'
#!/usr/bin/env bash
export HOME=/root
docker rm --force {name} > /dev/null 2>&1
exec {docker}
END_OF_RUN
cat > /etc/systemd/system/{name}.service <<'END_OF_UNIT'
{unit}END_OF_UNIT
systemctl daemon-reload
systemctl start --no-block {name}.service
"""
_UNIT = """\
[Unit]
Description=mmrl {name}
Requires=docker.service
After=docker.service network-online.target remote-fs.target
StartLimitIntervalSec=infinity
StartLimitBurst={starts}

[Service]
ExecStart=/bin/bash /opt/mmrl/run.sh
KillMode=mixed
TimeoutStopSec={grace}
Restart=on-failure
RestartSec=30
RestartPreventExitStatus={final}
"""


def create(job: Job, script: str) -> list[str]:
    """The command that asks for the machines, which begin with the file `script`.

    The alpha track: only there can `--type` name v5e, v5p and v6e, and so the topology be given.
    """
    _check(job)
    nodes = (
        [f"--node-id={job.name}"]
        if job.slices == 1
        else [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
    )
    tpu = google.TPUS[job.shape.chip.name]
    return [
        *_gcloud("create", job),
        *nodes,
        f"--type={tpu.kind}",
        f"--topology={google.shape_name(job.shape)}",
        f"--runtime-version={tpu.runtime_version}",
        f"--metadata-from-file=startup-script={script}",
        *(["--spot"] if job.spot else []),
        *(["--reserved", f"--reservation={job.reservation}"] if job.reservation else []),
        *([f"--service-account={job.service_account}"] if job.service_account else []),
    ]


def delete(job: Job) -> list[str]:
    """The command that gives the machines back: they cost money until then, also when idle."""
    return [*_gcloud("delete", job), "--force", "--quiet"]


def startup_script(job: Job) -> str:
    """The script that every machine runs. Raises `UserError` for what the job leaves open."""
    _check(job)
    unit = _UNIT.format(
        name=job.name,
        starts=job.max_restarts + 1,
        grace=job.grace_seconds,
        final=USER_ERROR_EXIT_STATUS,
    )
    registry = (job.image or "").partition("/")[0]
    return _SCRIPT.format(
        name=job.name,
        storage=shell.quote(job.storage or ""),
        mountpoint=shell.quote(job.storage_path),
        registry=shell.quote(registry if registry.endswith((".pkg.dev", "gcr.io")) else ""),
        docker=shell.join(docker(job)),
        unit=unit,
    )


def docker(job: Job) -> list[str]:
    """The container on one machine; attached, so that it gets the signals that docker gets."""
    variables = platform_flags.environment(job)
    return [
        "docker",
        "run",
        "--rm",
        f"--name={job.name}",
        "--privileged",
        "--net=host",
        "--ulimit=memlock=-1",
        f"--stop-timeout={job.grace_seconds}",
        f"--volume={job.storage_path}:{job.storage_path}",
        *(f"--env={name}={value}" for name, value in variables.items()),
        job.image or "",
        *job.command(),
    ]


def _gcloud(verb: str, job: Job) -> list[str]:
    return [
        *("gcloud", "alpha", "compute", "tpus", "queued-resources", verb, job.name),
        f"--project={job.project}",
        f"--zone={job.zone}",
    ]


def _check(job: Job) -> None:
    require(job, "queued_resources", "image", "storage", "project", "zone")
    require_platform(job, "queued_resources", "tpu")
    if job.hours is not None:
        raise UserError(
            "job.hours: queued resources run until they are deleted; use --target=jobset"
        )
    if ":/" not in (job.storage or ""):
        raise UserError(
            f"job.storage={job.storage}: queued_resources mounts an NFS export, as in "
            "10.0.0.2:/share"
        )
