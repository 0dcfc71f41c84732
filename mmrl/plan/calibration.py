"""Predicted against measured: steps of three small configs on this machine's CPU.

The figures that a prediction needs, FLOP/s of matrix products and bytes/s of memory, are measured
in the same run, so that other work on the machine slows both alike. Each config runs in a process
of its own, whose greatest resident size, above what it had before, is the measured memory.

    python -m mmrl.plan.calibration < config.json

is such a process, for a machine that the plan was made for elsewhere: seconds and bytes of the
config of a run, on one device. The memory of an accelerator is what its allocator says.
"""

import ctypes
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl import config as configs
from mmrl.chips import GIB
from mmrl.models import DecoderConfig
from mmrl.plan.devices import Topology, parse_topology
from mmrl.plan.predict import make_plan
from mmrl.rollout import Rollout, SamplingConfig, generate
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import make_optimizer
from mmrl.training.state import abstract_model, init_optimizer, init_params, split_trained
from mmrl.training.update import policy_update

REPEATS = 3
SIZE = 2048  # rows and columns of the measured product
COPIED = 1 << 28  # bytes


@dataclass(frozen=True)
class Row:
    """One config: seconds of a rollout and of an update, and bytes at the most."""

    name: str
    predicted_seconds: dict[str, float]
    measured_seconds: dict[str, float]
    predicted_bytes: float
    measured_bytes: float


def calibration_configs() -> dict[str, TrainConfig]:
    """A dense model, a mixture of experts and a hybrid, large enough that products dominate."""
    dense = DecoderConfig(
        vocab_size=4096,
        hidden_size=512,
        num_layers=6,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=1536,
        remat="full",
    )
    experts = dataclasses.replace(dense, num_experts=8, experts_per_token=2, intermediate_size=768)
    hybrid = dataclasses.replace(
        experts, num_layers=8, layer_pattern=("lightning",) * 3 + ("softmax",), postnorm=True
    )
    return {
        name: TrainConfig(
            model=model,
            sampling=SamplingConfig(group_size=8, max_new_tokens=128),
            prompts_per_step=4,
            prompt_length=128,
            mesh=MeshConfig(data=1),
        )
        for name, model in (("dense", dense), ("experts", experts), ("hybrid", hybrid))
    }


def calibrate() -> list[Row]:
    """Runs the three configs here."""
    topology = measured(parse_topology("cpu:1"))
    return [_row(name, config, topology) for name, config in calibration_configs().items()]


def measured(topology: Topology) -> Topology:
    """A CPU's topology with what its products and its memory do now."""
    devices = topology.count
    x = jnp.ones((SIZE, SIZE), jnp.float32)
    product = 2 * SIZE**3 / _seconds(jax.jit(jnp.matmul), x, x)
    y = jnp.ones(COPIED // 4, jnp.float32)
    moved = 2 * COPIED / _seconds(jax.jit(lambda y: y + 1), y)
    chip = dataclasses.replace(
        topology.chip,
        peak_bfloat16=product / devices,
        peak_float32=product / devices,
        hbm_bandwidth=moved / devices,
        link_bandwidth=moved / devices,
        host_bandwidth=moved / devices,
    )
    return dataclasses.replace(topology, chip=chip)


def _seconds(function: Callable, *arguments) -> float:
    """The median of some runs after the first."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _row(name: str, config: TrainConfig, topology: Topology) -> Row:
    plan = make_plan(config, topology)
    seconds = {phase.name: phase.seconds for phase in plan.cost.phases}
    found = _run_apart(config)
    return Row(
        name,
        {"rollout": seconds["prefill"] + seconds["decode"], "update": seconds["update"]},
        found["seconds"],
        plan.peak,
        found["bytes"],
    )


def _run_apart(config: TrainConfig) -> dict[str, Any]:
    """`run` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mmrl.plan.calibration"],
        input=json.dumps(configs.to_dict(config)),
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(config: TrainConfig) -> dict[str, Any]:
    """Seconds of a rollout and an update that are compiled already, and the bytes they needed."""
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])) as mesh:
        del mesh
        return _run(config)


def _run(config: TrainConfig) -> dict[str, Any]:
    mesh = jax.sharding.get_mesh()
    graphdef, _ = abstract_model(config.model)
    optimizer = make_optimizer(config.optimizer)
    key = jax.random.key(0)
    prompts = np.ones((config.prompts_per_step, config.prompt_length), np.int32)
    lengths = np.full(len(prompts), config.prompt_length, np.int32)

    def sample(params) -> Rollout:
        model = nnx.merge(graphdef, params)
        return generate(model, (prompts, lengths), config.sampling, key, layout="decode")

    update = functools.partial(
        policy_update,
        graphdef=graphdef,
        optimizer=optimizer,
        objective=config.objective,
        temperature=config.sampling.temperature,
        micro_batches=config.micro_batches,
    )

    def step() -> dict[str, float]:
        params, _ = split_trained(init_params(config.model, key, mesh))
        state = init_optimizer(optimizer, params, mesh)
        start = time.perf_counter()
        rollout = jax.block_until_ready(sample(params))
        between = time.perf_counter()
        jax.block_until_ready(update(params, state, rollout.arrays(), {}))
        return {"rollout": between - start, "update": time.perf_counter() - between}

    step()
    before = _resident_before() if jax.default_backend() == "cpu" else None
    found = [step() for _ in range(REPEATS)]
    if before is None:
        held = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    else:
        held = _resident("VmHWM") - before
    return {
        "seconds": {name: statistics.median(x[name] for x in found) for name in found[0]},
        "bytes": held,
    }


def _resident_before() -> int:
    """Bytes that the process holds now; the greatest size counts from here."""
    ctypes.CDLL(None).malloc_trim(0)  # else what the first step freed counts as held before
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def facts(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows, each with predicted over measured."""
    return [
        dataclasses.asdict(row)
        | {
            "seconds_ratio": {
                name: row.predicted_seconds[name] / seconds
                for name, seconds in row.measured_seconds.items()
            },
            "bytes_ratio": row.predicted_bytes / row.measured_bytes,
        }
        for row in rows
    ]


def table(rows: list[Row]) -> str:
    """Predicted and measured side by side."""
    lines = [
        f"{'config':10}{'':10}{'predicted':>12}{'measured':>12}{'error':>9}",
    ]
    for row in rows:
        for name, seconds in row.measured_seconds.items():
            guess = row.predicted_seconds[name]
            lines.append(
                f"{row.name:10}{name:10}{guess:10.2f} s{seconds:10.2f} s{guess / seconds - 1:9.0%}"
            )
        guess, found = row.predicted_bytes / GIB, row.measured_bytes / GIB
        error = guess / found - 1
        lines.append(f"{row.name:10}{'peak':10}{guess:8.2f} GiB{found:8.2f} GiB{error:9.0%}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(run(configs.from_dict(TrainConfig, json.load(sys.stdin)))))
