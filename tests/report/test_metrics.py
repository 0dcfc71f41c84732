"""The files of a run: strict JSON, flushed each step, and the same if the run was killed."""

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mmrl.errors import UserError
from mmrl.report.metrics import (
    MetricsWriter,
    milestones,
    read_metrics,
    rollout_files,
    write_rollouts,
)

SCHEDULE = [("warmstart", step) for step in range(4)] + [("rl", step) for step in range(6)]


def rollout_row(step):
    return {"step": step, "prompt": "2+2=", "response_tokens": ["4"], "logprobs": [-0.1 * step]}


def train(workdir, start=0, stop=None, resume=None):
    phase, step = resume or ("rl", None)
    with MetricsWriter(workdir, resume_phase=phase, resume_step=step) as writer:
        for phase, step in SCHEDULE[start:stop]:
            writer.write(step, {"value": 0.5 * step}, phase)
            if phase == "rl" and step % 2 == 0:
                write_rollouts(workdir, step, [rollout_row(step)])


def files_of(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*.jsonl"))
    }


@pytest.mark.parametrize("killed_after", range(1, len(SCHEDULE)))
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_killed_and_resumed_run_leaves_the_files_of_an_uninterrupted_one(
    tmp_path, killed_after, lag
):
    """The checkpoint is `lag` rows older than the kill, which also tore the row being written."""
    train(tmp_path / "whole")
    train(tmp_path / "killed", stop=killed_after)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "pha')
    checkpoint = max(killed_after - lag, 0)
    resume = SCHEDULE[checkpoint - 1] if checkpoint else None
    train(tmp_path / "killed", start=checkpoint, resume=resume)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_rollouts_after_the_checkpoint_are_forgotten(tmp_path):
    train(tmp_path)
    assert list(rollout_files(tmp_path)) == [0, 2, 4]
    MetricsWriter(tmp_path, resume_step=3).close()
    assert list(rollout_files(tmp_path)) == [0, 2]
    MetricsWriter(tmp_path, resume_step=3, resume_phase="warmstart").close()
    assert list(rollout_files(tmp_path)) == []


def test_row_is_on_disk_before_the_next_step_and_is_strict_json(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    writer = MetricsWriter(tmp_path)
    values = {"jax": jnp.float32(0.25), "numpy": np.int64(3), "int": 2, "float": 0.5}
    writer.write(7, values | {"nan": math.nan, "inf": jnp.float32(-math.inf)})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    writer.close()
    expected = {"jax": 0.25, "numpy": 3, "int": 2, "float": 0.5, "nan": None, "inf": None}
    assert row == {"step": 7, "phase": "rl"} | expected
    assert list(row)[:2] == ["step", "phase"]


def tensorboard_events(directory):
    """Events of one TensorBoard run, by the TFRecord format: u64 length, u32 crc, data, u32 crc."""
    events = []
    for file in sorted(directory.iterdir()):
        data, offset = file.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            events.append(Event.FromString(data[offset + 12 : offset + 12 + length]))
            offset += length + 16
    return events


def test_tensorboard_gets_each_phase_as_a_run_and_hides_steps_that_are_run_again(tmp_path):
    train(tmp_path)
    train(tmp_path, start=7, resume=("rl", 2))
    runs = {
        name: tensorboard_events(tmp_path / "tensorboard" / name) for name in ("warmstart", "rl")
    }
    scalars = {
        name: [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
        for name, events in runs.items()
    }
    assert scalars["warmstart"] == [(step, "value", 0.5 * step) for step in range(4)]
    assert scalars["rl"] == [(s, "value", 0.5 * s) for s in [*range(6), *range(3, 6)]]
    restarts = [e.step for e in runs["rl"] if e.HasField("session_log")]
    assert restarts[-1] == 3


def test_other_processes_write_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", primary=False) as writer:
        writer.write(1, {"value": 1.0})
    assert not (tmp_path / "run").exists()


def test_read_leaves_out_a_half_written_last_line_and_names_a_broken_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_metrics(tmp_path)
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]
    path.write_text('{"step": \n{"step": 2}\n')
    with pytest.raises(UserError, match="not JSON"):
        read_metrics(tmp_path)


def evaluation(phase, step):
    return {"phase": phase, "step": step, "eval/reward": 0.5}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [
                evaluation("warmstart", 0),
                evaluation("warmstart", 10),
                evaluation("warmstart", 20),
                {"phase": "rl", "step": 1},
                evaluation("rl", 5),
                evaluation("rl", 10),
            ],
            {"before": 0, "after warm start": 2, "after RL": 5},
        ),
        (
            [evaluation("warmstart", 0), {"phase": "warmstart", "step": 9}, evaluation("rl", 0)],
            {"before": 0, "after warm start": 2},
        ),
        ([evaluation("rl", 0), evaluation("rl", 5)], {"before": 0, "after RL": 1}),
        ([{"phase": "rl", "step": 1}], {}),
    ],
)
def test_milestones_are_the_evaluations_before_and_at_the_end_of_each_phase(rows, expected):
    assert milestones(rows) == {name: rows[index] for name, index in expected.items()}
