"""A job's mistakes are found when it is described."""

import pytest
from launch_tools import JOB, gpu_job, tpu_job, trainer_arguments

from launch import google
from launch.job import Job
from mmrl.errors import UserError
from mmrl.plan.devices import parse_topology


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Has Spaces"}, "name 'Has Spaces': at most 40 of a-z"),
        ({"name": "a" * 41}, "at most 40"),
        ({"name": "ends-"}, "not ending with -"),
        ({"topology": "v5p:3x3x3"}, "Did you mean v5p:"),
        ({"topology": "h100:64", "slices": 2}, "slices=2 is for TPUs"),
        ({"workdir": "gs://bucket/run"}, "mount the bucket"),
        ({"workdir": "/elsewhere/run"}, "not under storage_path /storage"),
        ({"workdir": "/storage2/run"}, "not under storage_path /storage"),
        ({"storage_path": "storage"}, "expected an absolute path"),
        ({"slices": 0}, "slices must be 1 to 1000, got 0"),
        ({"grace_seconds": 70_000}, "grace_seconds must be 1 to 65535"),
        ({"hours": 0.0}, "hours must be positive"),
        ({"price": -1.0}, "price must be positive"),
        ({"partition": "gpu long"}, "partition 'gpu long': no spaces"),
        ({"image": 'a"b'}, "image"),
        ({"environment": {"A B": "1"}}, "'A B' is not a variable's name"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Job(**{**JOB, "topology": "v5p:4x4x4", **changes})


def test_the_command_is_the_trainers_and_the_same_at_a_restart():
    job = tpu_job()
    assert job.command() == ["python", *trainer_arguments(job)]
    assert job.command() == job.command()


def test_the_cost_is_devices_by_hours_by_price():
    assert tpu_job().cost() == "64 v5p"
    assert tpu_job(slices=2, price=4.2).cost().startswith("128 v5p: $537.60 an hour, without")
    assert "$806.40 in 12 h" in gpu_job(price=4.2, hours=12.0).cost()


@pytest.mark.parametrize(
    ("topology", "machines", "devices"),
    [
        ("v5p:4x4x4", 16, 4),
        ("v6e:1x1", 1, 1),
        ("v6e:2x2", 1, 4),
        ("v5e:16x16", 64, 4),
        ("h100:64", 8, 8),
        ("h100:4", 1, 4),
    ],
)
def test_machines_have_as_many_devices_as_google_sells(topology, machines, devices):
    assert google.hosts(parse_topology(topology)) == (machines, devices)


def test_what_google_does_not_have_is_an_error():
    with pytest.raises(UserError, match="GKE has no h800"):
        google.node_selector(parse_topology("h800:8"))
