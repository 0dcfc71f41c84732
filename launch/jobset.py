"""TPUs and GPUs on GKE as a Kubernetes JobSet (jobset.x-k8s.io/v1alpha2), for `kubectl apply`.

One pod a machine, one process a pod. A pod that ends with a mistake of the user's fails the JobSet;
any other end restarts all pods, which continue from the last checkpoint. The cluster's own network
plug-in for GPUs (GPUDirect) is not part of this: `job.environment` sets NCCL for it.
"""

from typing import Any

import yaml

from launch import google, platform_flags
from launch.job import USER_ERROR_EXIT_STATUS, Job, require
from mmrl.distributed import COORDINATOR_PORT

_CONTAINER = "trainer"
_LABELS = "jobset.sigs.k8s.io"


def render(job: Job) -> str:
    """The manifest as YAML. Raises `UserError` for what the job leaves open."""
    return yaml.safe_dump(manifest(job), sort_keys=False, width=10_000)


def manifest(job: Job) -> dict[str, Any]:
    """The manifest as plain values."""
    require(job, "jobset", "image", "storage")
    hosts, _ = google.hosts(job.shape)
    template: dict[str, Any] = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [USER_ERROR_EXIT_STATUS],
                    },
                }
            ]
        },
        "template": {"spec": pod(job)},
    }
    final = ["PodFailurePolicy"]
    if job.hours is not None:
        template["activeDeadlineSeconds"] = round(job.hours * 3600)
        final.append("DeadlineExceeded")
    metadata: dict[str, Any] = {"name": job.name, "namespace": job.namespace}
    if job.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
    if job.shape.platform == "tpu":
        # A slice is a node pool: the pods of one child job must not spread over two.
        pool = "cloud.google.com/gke-nodepool"
        metadata["annotations"] = {f"alpha.{_LABELS}/exclusive-topology": pool}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": final}],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": job.slices, "template": {"spec": template}}
            ],
        },
    }


def pod(job: Job) -> dict[str, Any]:
    """The specification of one machine's pod."""
    tpu = job.shape.platform == "tpu"
    selector = google.node_selector(job.shape)
    tolerations = [{"key": "google.com/tpu" if tpu else "nvidia.com/gpu", "operator": "Exists"}]
    if job.spot:
        selector[google.SPOT_LABEL] = "true"
        tolerations.append({"key": google.SPOT_LABEL, "operator": "Equal", "value": "true"})
    if job.reservation:
        selector[google.RESERVATION_LABEL] = job.reservation
    volumes: list[dict[str, Any]] = [
        {"name": "storage", "persistentVolumeClaim": {"claimName": job.storage}}
    ]
    if not tpu:
        # NCCL and the CPU's collectives exchange through shared memory; the default is 64 MiB.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_seconds,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        **({"serviceAccountName": job.service_account} if job.service_account else {}),
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container(job)],
        "volumes": volumes,
    }


def container(job: Job) -> dict[str, Any]:
    """The trainer's container. It is process 1 of the pod, so that SIGTERM reaches it directly."""
    tpu = job.shape.platform == "tpu"
    _, devices = google.hosts(job.shape)
    resource = "google.com/tpu" if tpu else "nvidia.com/gpu"
    mounts = [{"name": "storage", "mountPath": job.storage_path}]
    if not tpu:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return {
        "name": _CONTAINER,
        "image": job.image,
        "command": [_literal(word) for word in job.command()],
        "env": _members(job)
        + [
            {"name": name, "value": _literal(value)}
            for name, value in platform_flags.environment(job, devices_per_process=devices).items()
        ],
        "ports": [{"containerPort": COORDINATOR_PORT}],
        **({"securityContext": {"privileged": True}} if tpu else {}),
        "resources": {"limits": {resource: devices}},
        "volumeMounts": mounts,
    }


def _members(job: Job) -> list[dict[str, Any]]:
    """What `mmrl.distributed` reads; GKE itself describes a TPU slice to its pods."""
    if job.shape.platform == "tpu":
        return []
    hosts, _ = google.hosts(job.shape)
    labels = {
        "JOBSET_NAME": f"{_LABELS}/jobset-name",
        "JOBSET_REPLICATEDJOB_NAME": f"{_LABELS}/replicatedjob-name",
    }
    return [
        {
            "name": name,
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}},
        }
        for name, label in labels.items()
    ] + [{"name": "JOBSET_PROCESS_COUNT", "value": str(hosts)}]


def _literal(text: str) -> str:
    """Kubernetes expands $(NAME) in commands and values; $$ stands for a dollar."""
    return text.replace("$", "$$")
