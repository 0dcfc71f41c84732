"""Manifests have the published types, and the trainer gets its words through Kubernetes."""

from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from launch_tools import gpu_job, kubernetes_expand, tpu_job, trainer_arguments

from launch import jobset
from launch.job import Job
from mmrl.distributed import find_job
from mmrl.errors import UserError

JOBS = {
    "tpu": tpu_job(),
    "tpu, slices, spot": tpu_job(slices=2, spot=True, queue="team", service_account="trainer"),
    "tpu, one chip": tpu_job(topology="v6e:1x1"),
    "gpu": gpu_job(),
    "gpu, hours, reservation": gpu_job(hours=1.5, reservation="mine", max_restarts=3),
}


def missing(given: Any, known: Any, place: str = "") -> list[str]:
    """Places where `known`, which the published types kept, lacks what was given."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [
            line
            for key, value in given.items()
            for line in missing(value, known.get(key), f"{place}.{key}")
        ]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        pairs = enumerate(zip(given, known, strict=True))
        return [line for i, (a, b) in pairs for line in missing(a, b, f"{place}[{i}]")]
    return [] if given == known else [place]


def parts(job: Job) -> tuple[dict, dict, dict]:
    """The manifest as Kubernetes reads it from YAML: all of it, a child job, a pod."""
    manifest = yaml.safe_load(jobset.render(job))
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    return manifest, template, template["template"]["spec"]


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_manifest_is_of_jobsets_published_types(job):
    manifest, _, _ = parts(job)
    assert missing(manifest, JobsetV1alpha2JobSet.from_dict(manifest).to_dict()) == []


def test_the_types_refuse_a_misspelt_field_and_a_wrong_type():
    manifest, template, pod = parts(gpu_job())
    pod["terminationGracePeriod"] = pod.pop("terminationGracePeriodSeconds")
    known = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    assert [line.rpartition(".")[2] for line in missing(manifest, known)] == [
        "terminationGracePeriod"
    ]
    template["parallelism"] = "two"
    with pytest.raises(ValueError):
        JobsetV1alpha2JobSet.from_dict(manifest)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_every_word_and_variable_arrives_as_it_was_written(job):
    _, _, pod = parts(job)
    (container,) = pod["containers"]
    variables = {}
    for entry in container["env"]:
        variables[entry["name"]] = kubernetes_expand(entry.get("value", ""), variables)
    words = [kubernetes_expand(word, variables) for word in container["command"]]
    assert words == ["python", *trainer_arguments(job)]
    assert variables["NOTE"] == job.environment["NOTE"]


def test_a_slice_is_a_job_of_one_pod_a_machine():
    manifest, template, pod = parts(tpu_job(slices=3))
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert template["parallelism"] == template["completions"] == 16
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }


def test_sigterm_reaches_the_trainer_with_the_grace_period():
    _, _, pod = parts(gpu_job(grace_seconds=77))
    assert pod["terminationGracePeriodSeconds"] == 77
    assert pod["containers"][0]["command"][0] == "python"  # process 1, no shell before it


def test_only_a_mistake_of_the_users_or_the_time_limit_is_final():
    """Kubernetes allows podFailurePolicy with restartPolicy Never only."""
    manifest, template, pod = parts(gpu_job(hours=1.5, max_restarts=3))
    (rule,) = template["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never" and template["backoffLimit"] == 0
    assert template["activeDeadlineSeconds"] == 5400
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy", "DeadlineExceeded"]


@pytest.mark.parametrize("pod_number", [0, 1])
def test_a_gpu_pod_finds_its_job_in_its_environment(pod_number):
    """With the labels, index and host names that JobSet documents."""
    manifest, template, pod = parts(gpu_job())
    labels = {
        "jobset.sigs.k8s.io/jobset-name": manifest["metadata"]["name"],
        "jobset.sigs.k8s.io/replicatedjob-name": manifest["spec"]["replicatedJobs"][0]["name"],
    }
    environment = {"JOB_COMPLETION_INDEX": str(pod_number)}
    for entry in pod["containers"][0]["env"]:
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        label = field.removeprefix("metadata.labels['").removesuffix("']")
        environment[entry["name"]] = labels[label] if label else entry["value"]
    found = find_job({"coordinator": None}, environment)
    assert found is not None
    host, _, port = found["coordinator_address"].partition(":")
    assert host == "words-slice-0-0.words"
    assert int(port) == pod["containers"][0]["ports"][0]["containerPort"]
    assert (found["process_id"], found["num_processes"]) == (pod_number, template["completions"])


@pytest.mark.parametrize("field", ["image", "storage", "workdir", "name", "topology"])
def test_what_is_left_open_is_named(field):
    with pytest.raises(UserError, match=f"job.{field} is not set; jobset needs it"):
        jobset.render(gpu_job(**{field: ""}))
