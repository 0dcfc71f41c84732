"""A plan as a table and as JSON."""

import dataclasses
import itertools
from collections import defaultdict
from typing import Any

from mmrl.chips import GIB
from mmrl.models import parameter_count
from mmrl.plan.advice import remedies
from mmrl.plan.compiler import Compiled
from mmrl.plan.predict import Plan, warnings
from mmrl.plan.roofline import SECONDS_AN_HOUR, Efficiency


def facts(plan: Plan, efficiency: Efficiency | None = None) -> dict[str, Any]:
    """Everything that the table says, as numbers; bytes, FLOPs and seconds of one device."""
    total, active = parameter_count(plan.config.model)
    chip, work, cost = plan.topology.chip, plan.step.work, plan.cost
    return {
        "topology": plan.topology.label,
        "devices": plan.topology.count,
        "mesh": dataclasses.asdict(plan.step.mesh),
        "parameters": {"total": total, "active": active},
        "step": dataclasses.asdict(work)
        | {
            "updates": plan.step.updates,
            "micro_batches": plan.step.micro_batches // plan.step.updates,
            "rollout_batches": plan.step.rollout_batches,
        },
        "bytes": {
            "device": chip.hbm_bytes,
            "peak": plan.peak,
            "fits": plan.fits,
            "needed": dict(plan.needed),
            **dataclasses.asdict(plan.bytes),
        },
        "programs": {
            name: {
                "arguments": program.memory.arguments,
                "outputs": program.memory.outputs,
                "temporaries": program.memory.temporaries,
                "largest": [dataclasses.asdict(b) for b in program.memory.largest],
                "sent": _sent(program),
                "lower_seconds": program.lower_seconds,
                "compile_seconds": program.compile_seconds,
                "compile_cpu_seconds": program.cpu_seconds,
                "compile_host_bytes": program.host_bytes,
            }
            for name, program in plan.programs.items()
        },
        "phases": [
            {
                "name": phase.name,
                "flops": phase.flops,
                "float32_flops": phase.float32_flops,
                "bytes": phase.hbm_bytes,
                "sent": sum(x.bytes for x in phase.sent),
                "compute_seconds": times.compute,
                "memory_seconds": times.memory,
                "network_seconds": times.network,
                "seconds": times.seconds,
                "bound": times.bound,
            }
            for phase, times in zip(plan.phases, cost.phases, strict=True)
        ],
        "efficiency": dataclasses.asdict(efficiency or Efficiency()),
        "step_seconds": cost.step_seconds,
        "tokens_per_second_per_device": cost.tokens_per_second_per_device,
        "mfu": cost.mfu,
        "steps": cost.steps,
        "seconds": cost.seconds,
        "dollars_per_device_hour": cost.dollars_per_hour,
        "dollars_per_step": cost.dollars / max(cost.steps, 1),
        "dollars": cost.dollars,
        "warnings": warnings(plan),
        "remedies": [] if plan.fits else remedies(plan),
    }


def _sent(program: Compiled) -> dict[str, dict[str, float]]:
    """Bytes that a device sends and how many collectives there are, by kind."""
    size: defaultdict[str, float] = defaultdict(float)
    number: defaultdict[str, int] = defaultdict(int)
    for collective in program.collectives:
        if collective.devices > 1:
            times = collective.times or 1
            size[collective.kind] += collective.sent * times
            number[collective.kind] += times
    return {kind: {"bytes": size[kind], "times": number[kind]} for kind in size}


def table(found: dict[str, Any]) -> str:
    """The text of a plan."""
    parts = (_head(found), _memory(found), _time(found), _programs(found), _notes(found))
    return "\n".join(itertools.chain.from_iterable((*part, "") for part in parts if part))


def _head(found: dict) -> list[str]:
    step, parameters = found["step"], found["parameters"]
    mesh = " × ".join(f"{name}={size}" for name, size in found["mesh"].items() if size > 1)
    return [
        f"{found['topology']}: {found['devices']:,} devices, mesh {mesh or 'of one device'}",
        f"parameters {parameters['total']:,} total, {parameters['active']:,} active",
        f"a step: {step['prompts']:,} prompts of {step['prompt_length']:,} tokens x "
        f"{step['group_size']} responses of {step['response_length']:,}; {step['updates']} updates "
        f"of {step['micro_batches']} micro-batches; sampled in {step['rollout_batches']} batches",
    ]


def _memory(found: dict) -> list[str]:
    held, programs = found["bytes"], found["programs"]
    columns = ("update", "prefill", "decode")
    lines = [f"{'GiB a device':38}" + "".join(f"{name:>10}" for name in columns)]
    rollout, waiting = held["rollout_parameters"], held["optimizer"]
    rows = [
        ("parameters", held["parameters"], rollout, rollout),
        ("the layers' as decoding reads them", 0, 0, held["loop_weights"]),
        ("gradients", held["gradients"], 0, 0),
        ("optimizer", waiting, waiting, waiting),
        ("activations kept", held["activations"], 0, 0),
        ("cache", 0, held["prompt_cache"], held["cache"]),
        (
            "one layer at work, head",
            held["working"],
            held["prefill_working"],
            held["decode_working"],
        ),
    ]
    lines += [f"  {name:36}" + "".join(map(_gib, sizes)) for name, *sizes in rows]
    lines.append(f"{'':38}{'update':>10}{'rollout':>10}")
    if programs:
        temporaries = (programs[name]["temporaries"] for name in ("update", "rollout"))
        lines.append(f"  {'temporaries, as compiled':36}" + "".join(map(_gib, temporaries)))
    needed = "".join(_gib(held["needed"].get(name, 0)) for name in ("update", "rollout"))
    lines.append(f"  {'needed, ' + ('as compiled' if programs else 'by arithmetic'):36}{needed}")
    verdict = "fits" if held["fits"] else "DOES NOT FIT"
    lines.append(
        f"  peak {held['peak'] / GIB:.1f} of {held['device'] / GIB:.1f} GiB: {verdict}"
        + (f" (reshard {held['needed']['reshard'] / GIB:.1f})" if "reshard" in programs else "")
    )
    if not held["fits"]:
        lines += _largest(found) + [f"  would fit: {change}" for change in found["remedies"]]
    return lines


def _largest(found: dict) -> list[str]:
    lines = []
    for name, program in found["programs"].items():
        if found["bytes"]["needed"][name] > found["bytes"]["device"]:
            lines.append(f"  largest temporaries of {name}:")
            lines += [
                f"    {_gib(b['bytes']).strip():>8} {b['shape']}  {b['operation']}"
                for b in program["largest"]
            ]
    return lines


def _time(found: dict) -> list[str]:
    columns = f"{'TFLOP':>12}{'GB read':>11}{'GB sent':>11}{'seconds':>11}  bound by"
    lines = [f"{'phase, a device':18}{columns}"]
    for phase in found["phases"]:
        lines.append(
            f"  {phase['name']:16}{phase['flops'] / 1e12:12,.1f}{phase['bytes'] / 1e9:11,.1f}"
            f"{phase['sent'] / 1e9:11,.1f}{phase['seconds']:11,.2f}  {phase['bound']}"
        )
    hours = found["seconds"] / SECONDS_AN_HOUR
    return [
        *lines,
        f"  {Efficiency(**found['efficiency'])}; the slowest of the three counts",
        f"  a step {found['step_seconds']:,.1f} s; "
        f"{found['tokens_per_second_per_device']:,.0f} response tokens/s a device; "
        f"MFU {found['mfu']:.1%}",
        f"  {found['steps']:,} steps: {hours:,.1f} hours, ${found['dollars']:,.0f} at "
        f"${found['dollars_per_device_hour']:.2f} a device-hour (${found['dollars_per_step']:,.2f} "
        "a step)",
    ]


def _programs(found: dict) -> list[str]:
    lines = []
    for name, program in found["programs"].items():
        sent = ", ".join(
            f"{kind} {x['bytes'] / 1e9:,.1f} GB in {x['times']:,}"
            for kind, x in program["sent"].items()
        )
        lines.append(
            f"  {name:9} lowered in {program['lower_seconds']:.1f} s, "
            f"compiled in {program['compile_seconds']:.0f} s "
            f"({program['compile_cpu_seconds']:.0f} s of CPU in all) and "
            f"{program['compile_host_bytes'] / GIB:.1f} GiB; sends {sent or 'nothing'}"
        )
    return ["collectives, a device and execution", *lines] if lines else []


def _notes(found: dict) -> list[str]:
    return [f"note: {warning}" for warning in found["warnings"]]


def _gib(size: float) -> str:
    return f"{size / GIB:10.2f}" if size else f"{'-':>10}"
