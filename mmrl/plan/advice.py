"""Config changes that would make a plan fit, by arithmetic."""

import dataclasses
from collections.abc import Iterator, Mapping

from mmrl import config as configs
from mmrl.chips import GIB
from mmrl.errors import UserError
from mmrl.models import LoraConfig
from mmrl.plan.predict import Plan, make_plan
from mmrl.training.config import TrainConfig

MOST = 4  # changes that are named


def remedies(plan: Plan) -> list[str]:
    """`--config.a.b=VALUE` of changes that bring each program below the device's memory.

    A change is worth what it saves by arithmetic, taken from what the compiled programs need.
    """
    before = _estimated(plan.config, plan)
    found: dict[frozenset[str], str] = {}
    for changes in _changes(plan.config):
        if any(fewer <= changes.keys() for fewer in found):
            continue  # more than is needed
        try:
            changed = configs.override(plan.config, changes)
            after = _estimated(changed, plan)
        except (UserError, ValueError):
            continue
        needed = {
            name: size + after.get(name, 0) - before.get(name, 0)
            for name, size in plan.needed.items()
            if name in before
        }
        if max(needed.values()) <= plan.topology.chip.hbm_bytes:
            size = f"{max(needed.values()) / GIB:.1f} GiB"
            found[frozenset(changes)] = f"{arguments(changes)} ({size})"
    return list(found.values())[:MOST]


def arguments(changes: Mapping[str, str]) -> str:
    """Changes as they are typed."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def _estimated(config: TrainConfig, plan: Plan) -> Mapping[str, float]:
    return make_plan(config, plan.topology, compiled=False).needed


def _changes(config: TrainConfig) -> Iterator[dict[str, str]]:
    """From what costs least to what changes the run most."""
    rollout = [{}, {"cache_memory_fraction": "0.5"}, {"cache_memory_fraction": "0.25"}]
    rollout += [{"model.loop_copies": "False"}] if config.model.loop_copies else []
    update: list[dict[str, str]] = [{}]
    if config.model.remat != "full":
        update.append({"model.remat": "full"})
    most = config.prompts_per_step // config.updates_per_rollout
    larger = [config.micro_batches * n for n in (2, 4, 8, 16)]
    update += [{"micro_batches": str(n)} for n in larger if most % n == 0]
    mesh = dataclasses.asdict(config.mesh)
    for sequence in (2, 4, 8):
        if mesh["fsdp"] % sequence == 0 and mesh["fsdp"] > sequence:
            sizes = mesh | {
                "fsdp": mesh["fsdp"] // sequence,
                "sequence": mesh["sequence"] * sequence,
            }
            update.append({f"mesh.{name}": str(sizes[name]) for name in ("fsdp", "sequence")})
    update.append({"optimizer.offload": "True"})
    if config.model.lora is None:
        update.append({"model.lora.rank": str(LoraConfig().rank), "model.param_dtype": "bfloat16"})
    for first in update:
        for second in rollout:
            if first or second:
                yield first | second
    yield {"sampling.max_new_tokens": str(config.sampling.max_new_tokens // 2)}
