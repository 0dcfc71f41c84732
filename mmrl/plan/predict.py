"""A plan: what a config's RL step holds, sends, takes and costs on a slice.

FLOPs and bytes read are arithmetic (`mmrl.plan.estimate`). Memory and what devices send to each
other are the compiled programs', and arithmetic where nothing was compiled.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmrl import sharding
from mmrl.errors import UserError, user_mistakes
from mmrl.plan import hlo
from mmrl.plan.arithmetic import Workload, step_flops
from mmrl.plan.compiler import Compiled, compile_program
from mmrl.plan.device_bytes import DeviceBytes, Step, device_bytes
from mmrl.plan.devices import Topology
from mmrl.plan.estimate import phases
from mmrl.plan.programs import PROGRAMS
from mmrl.plan.roofline import Cost, Efficiency, Phase, Transfer, cost
from mmrl.rollout.memory import prompt_batches
from mmrl.sharding import Layout, MeshConfig, abstract_mesh
from mmrl.training.config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """A config on a slice; `programs` are empty where nothing was compiled.

    `phases` are those of one step, one device's part; `needed` the bytes that a device holds while
    each program runs, those that wait beside it included.
    """

    config: TrainConfig
    topology: Topology
    step: Step
    bytes: DeviceBytes
    programs: Mapping[str, Compiled]
    phases: tuple[Phase, ...]
    cost: Cost
    needed: Mapping[str, float]

    @property
    def peak(self) -> float:
        return max(self.needed.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.topology.chip.hbm_bytes


def make_plan(
    config: TrainConfig,
    topology: Topology,
    *,
    steps: int | None = None,
    dollars_per_hour: float | None = None,
    efficiency: Efficiency | None = None,
    compiled: bool = True,
) -> Plan:
    """The plan of `steps` steps of a config, the config's own number unless given.

    Raises `UserError` where the mesh does not fit the slice, its compiler is missing, or rollouts
    have a mesh of their own.
    """
    if config.off_policy.rollout_mesh is not None:
        raise UserError(
            "a plan is of one mesh: it needs --config.off_policy.rollout_mesh=None, and the slice "
            "without the devices of rollout_mesh"
        )
    step = step_of(config, topology)
    config = dataclasses.replace(config, mesh=step.mesh)
    programs: dict[str, Compiled] = {}
    if compiled:
        found = (compile_program(name, config, topology) for name in PROGRAMS)
        programs = {program.name: program for program in found if program is not None}
    parts = tuple(_as_compiled(step, phase, programs, topology) for phase in phases(step))
    useful = step_flops(step.config, step.work, recompute=False)
    return Plan(
        config,
        topology,
        step,
        device_bytes(step),
        programs,
        parts,
        cost(
            parts,
            topology,
            tokens=step.work.response_tokens,
            model_flops=sum(flops.total for flops in useful.values()),
            steps=config.steps if steps is None else steps,
            dollars_per_hour=dollars_per_hour,
            efficiency=efficiency,
        ),
        _needed(config, step, programs),
    )


def step_of(config: TrainConfig, topology: Topology) -> Step:
    """The config's RL step, every response as long as `sampling.max_new_tokens`."""
    with user_mistakes():
        mesh = sharding.resolve(config.mesh, topology.count)
    sampling, updates = config.sampling, config.updates_per_rollout
    batches = _rollout_batches(config, mesh, topology)
    return Step(
        config.model,
        Workload(
            config.prompts_per_step,
            sampling.group_size,
            config.prompt_length,
            sampling.max_new_tokens,
        ),
        mesh,
        micro_batches=updates * config.micro_batches,
        updates=updates,
        rollout_batches=len(batches),
        rollout_prompts=batches[0].stop,
        platform=topology.platform,
    )


def _rollout_batches(config: TrainConfig, mesh: MeshConfig, topology: Topology) -> list[slice]:
    """The batches that the sampler takes, as `mmrl.rollout.memory.generate_within`."""
    return prompt_batches(
        config.cache_memory_fraction,
        topology.chip.hbm_bytes,
        config.model,
        config.prompts_per_step,
        config.sampling,
        config.prompt_length,
        "decode",
        abstract_mesh(mesh),
    )


def _as_compiled(
    step: Step, phase: Phase, programs: Mapping[str, Compiled], topology: Topology
) -> Phase:
    """The phase with what its compiled program sends."""
    if phase.name == "reshard" and "reshard" in programs:
        # Back is not compiled: it sends as much.
        sent = transfers(programs["reshard"].collectives, 2)
    elif phase.name == "update" and "update" in programs:
        sent = transfers(programs["update"].collectives, step.updates)
    elif phase.name in ("prefill", "decode") and "rollout" in programs:
        inside = [c for c in programs["rollout"].collectives if c.in_unknown_loop]
        outside = [c for c in programs["rollout"].collectives if not c.in_unknown_loop]
        own = inside if phase.name == "decode" else outside
        sent = transfers(own, step.rollout_batches)
    else:
        return phase
    return dataclasses.replace(phase, sent=sent)


def transfers(found: Iterable[hlo.Collective], repeats: int = 1) -> tuple[Transfer, ...]:
    """What the collectives of a program that runs so often send, by devices and span."""
    size: defaultdict[tuple[int, int], float] = defaultdict(float)
    number: defaultdict[tuple[int, int], float] = defaultdict(float)
    for collective in found:
        key, times = (collective.devices, collective.span), repeats * (collective.times or 1)
        size[key] += times * collective.sent
        number[key] += times
    return tuple(Transfer(key[0], size[key], number[key], key[1]) for key in size)


def _needed(config: TrainConfig, step: Step, programs: Mapping[str, Compiled]) -> dict[str, float]:
    """Bytes that a device holds during each program.

    The optimizer's state waits while the sampler runs, unless it is offloaded, and the reference of
    a KL term always.
    """
    held = device_bytes(step)
    reference = held.gradients if config.objective.kl_coefficient else 0.0
    optimizer = 0.0 if config.optimizer.offload else held.optimizer
    if not programs:
        return {
            "rollout": held.rollout - held.optimizer + optimizer + reference,
            "update": held.update - held.optimizer + optimizer + reference,
        }
    waiting = {"reshard": optimizer + reference, "rollout": optimizer + reference}
    return {
        name: program.memory.total + waiting.get(name, reference)
        for name, program in programs.items()
    }


def warnings(plan: Plan) -> list[str]:
    """What the mesh would cut and does not divide, so that devices repeat each other's work."""
    config, one, drawn = plan.config.model, plan.step.micro_batch, plan.step.rollout_batch
    heads = ("activation_heads", config.num_heads, "heads")
    cases: list[tuple[Layout, str, int, str]] = [
        ("train", "rows", one.rows, "rows of a micro-batch"),
        ("train", "rows", one.prompts, "prompts of a micro-batch"),
        ("train", "time", one.response_length, "tokens of a response"),
        ("train", *heads),
        ("train", "mlp", config.intermediate_size, "MLP width"),
        ("train", "vocab", config.vocab_size, "vocabulary"),
        ("decode", "batch", drawn.rows, "rows of a rollout"),
        ("decode", "heads", config.num_heads, "heads"),
        ("decode", "mlp", config.intermediate_size, "MLP width"),
        ("decode", "vocab", config.vocab_size, "vocabulary"),
    ]
    if config.num_experts:
        cases.append(("train", "expert", config.num_experts, "experts"))
    found, mesh = [], abstract_mesh(plan.step.mesh)
    for layout, axis, size, what in cases:
        with sharding.layout(layout):
            axes = sharding.uncut(axis, size, mesh)
        if axes:
            names = " × ".join(f"{name}={mesh.shape[name]}" for name in axes)
            when = "in the sampler" if layout == "decode" else "in the update"
            found.append(f"{size:,} {what} are not cut over {names} {when}")
    return found
