"""Looks for the cheapest step that fits a slice: mesh, remat policy, micro-batches, cache batches.

All candidates are priced by arithmetic, whose bytes are a lower bound, so what it rejects cannot
fit. The cheapest of the rest are compiled, until enough are known to fit.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.plan import report
from mmrl.plan.advice import arguments
from mmrl.plan.devices import Topology, slices
from mmrl.plan.predict import Plan, make_plan
from mmrl.sharding import MeshConfig
from mmrl.training.config import TrainConfig

REMAT = ("full", "projections", "products", "none")
CACHE_FRACTIONS = ("None", "0.5", "0.25", "0.1")
MOST_TENSOR, MOST_SEQUENCE = 16, 16
GIVE_UP = 4  # compilations that do not fit for each that was asked for


@dataclass(frozen=True)
class Candidate:
    """A config by its changes, its plan by arithmetic, and the compiled one if there is one."""

    changes: dict[str, str]
    estimated: Plan
    compiled: Plan | None = None

    @property
    def plan(self) -> Plan:
        return self.compiled or self.estimated

    @property
    def dollars(self) -> float:
        """Of one step."""
        return self.plan.cost.dollars / max(self.plan.cost.steps, 1)


@dataclass(frozen=True)
class Search:
    """`ranked` by dollars a step, compiled candidates that fit first; `fsdp_only` to compare with,
    compiled where others are.
    """

    ranked: list[Candidate]
    fsdp_only: Candidate
    tried: int
    fitting: int


def search(
    config: TrainConfig,
    topology: Topology,
    *,
    budget_per_hour: float | None = None,
    dollars_per_hour: float | None = None,
    compilations: int = 3,
) -> Search:
    """The cheapest configs on the slice, or on any slice of its chip within dollars an hour.

    Raises `UserError` where none can fit.
    """
    price = topology.chip.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
    places = [topology]
    if budget_per_hour is not None:
        places = [x for x in slices(topology.chip) if x.count * price <= budget_per_hour]
        if not places:
            raise UserError(
                f"--budget={budget_per_hour:g} buys no {topology.chip.name} at ${price:g} an hour"
            )
    tried, candidates = 0, []
    for place in places:
        for mesh in meshes(config, place):
            found = list(_on_mesh(config, place, mesh, dollars_per_hour))
            tried += len(found)
            candidates += [x for x in found if x.estimated.fits]
    if not candidates:
        raise UserError(
            f"nothing fits {topology.label}: {tried} configs were tried; take a larger slice, "
            "shorter responses or LoRA (--config.model.lora.rank=16)"
        )
    candidates.sort(key=lambda candidate: candidate.dollars)
    only = MeshConfig(data=1, fsdp=topology.count)
    alone = list(_on_mesh(config, topology, only, dollars_per_hour))
    baseline = min(alone, key=lambda x: (not x.estimated.fits, x.dollars))
    if not compilations:
        return Search(candidates, baseline, tried, len(candidates))
    compiled, others = _compiled(candidates, dollars_per_hour, compilations)
    known = [candidate for candidate in compiled if candidate.changes == baseline.changes]
    baseline = known[0] if known else _compile(baseline, dollars_per_hour)
    if baseline.plan.fits and not known:
        compiled.append(baseline)
    if not compiled:
        raise UserError(
            f"nothing fits {topology.label}: {len(candidates)} of {tried} configs fit by "
            "arithmetic and none as compiled; take a larger slice, shorter responses or LoRA "
            "(--config.model.lora.rank=16)"
        )
    compiled.sort(key=lambda candidate: candidate.dollars)
    return Search([*compiled, *others], baseline, tried, len(candidates))


def meshes(config: TrainConfig, topology: Topology) -> Iterator[MeshConfig]:
    """All meshes of the slice that the model's heads, experts and tokens can be cut by."""
    model, count = config.model, topology.count
    most = min(MOST_TENSOR, topology.chip.per_host if topology.platform == "gpu" else MOST_TENSOR)
    tensor = [n for n in _divisors(count) if n <= most and model.num_heads % n == 0]
    experts = [n for n in _divisors(count) if n <= max(model.num_experts, 1)]
    experts = [n for n in experts if model.num_experts % n == 0]
    length = config.sampling.max_new_tokens
    sequence = [n for n in _divisors(count) if n <= MOST_SEQUENCE and length % n == 0]
    for t, e, s in itertools.product(tensor, experts, sequence):
        if count % (t * e * s) == 0:
            rest = count // (t * e * s)
            for fsdp in _divisors(rest):
                yield MeshConfig(rest // fsdp, fsdp, e, s, t)


def _on_mesh(
    config: TrainConfig, topology: Topology, mesh: MeshConfig, price: float | None
) -> Iterator[Candidate]:
    """The cheapest way to update and the cheapest to sample; each alone, then both."""
    sizes = {f"mesh.{name}": str(size) for name, size in dataclasses.asdict(mesh).items()}
    of_update = config.prompts_per_step // config.updates_per_rollout
    micro = [n for n in _divisors(of_update) if n & (n - 1) == 0]
    updates = [{"micro_batches": str(n), "model.remat": remat} for n in micro for remat in REMAT]
    rollouts = [{"cache_memory_fraction": fraction} for fraction in CACHE_FRACTIONS]

    def best(options: list[dict[str, str]], program: str, phases: tuple[str, ...]) -> dict:
        def rank(changes: dict[str, str]) -> tuple[bool, float]:
            try:
                plan = _estimated(config, topology, sizes | changes, price)
            except (UserError, ValueError):
                return True, math.inf
            seconds = sum(p.seconds for p in plan.cost.phases if p.name in phases)
            return plan.needed[program] > topology.chip.hbm_bytes, seconds

        return min(options, key=rank)

    changes = sizes | best(updates, "update", ("update",))
    changes |= best(rollouts, "rollout", ("prefill", "decode"))
    try:
        yield Candidate(changes, _estimated(config, topology, changes, price))
    except (UserError, ValueError):
        return


def _estimated(config: TrainConfig, topology: Topology, changes: dict, price) -> Plan:
    changed = configs.override(config, changes)
    return make_plan(changed, topology, dollars_per_hour=price, compiled=False)


def _compiled(
    candidates: list[Candidate], price: float | None, number: int
) -> tuple[list[Candidate], list[Candidate]]:
    """The first candidates that fit as compiled, and those that are left.

    What the compiled programs so far needed beyond the arithmetic, at the least, all others need:
    candidates that would not fit then are passed over.
    """
    fitting: list[Candidate] = []
    waiting, beyond, failed = list(candidates), dict[str, float](), 0
    while waiting and len(fitting) < number and failed < GIVE_UP * number:
        candidate = waiting.pop(0)
        estimated, most = candidate.estimated, candidate.estimated.topology.chip.hbm_bytes
        if any(size + beyond.get(name, 0) > most for name, size in estimated.needed.items()):
            continue
        compiled = _compile(candidate, price)
        for name, size in estimated.needed.items():
            more = compiled.plan.needed[name] - size
            beyond[name] = min(beyond.get(name, more), more)
        if compiled.plan.fits:
            fitting.append(compiled)
        else:
            failed += 1
    return fitting, waiting


def _compile(candidate: Candidate, price: float | None) -> Candidate:
    estimated = candidate.estimated
    plan = make_plan(estimated.config, estimated.topology, dollars_per_hour=price)
    return dataclasses.replace(candidate, compiled=plan)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def facts(found: Search) -> dict[str, Any]:
    """The ten best, and the plan of the best."""
    return {
        "tried": found.tried,
        "fitting_by_arithmetic": found.fitting,
        "ranked": [_row(candidate) for candidate in found.ranked[:10]],
        "fsdp_only": _row(found.fsdp_only),
        "best": report.facts(found.ranked[0].plan),
    }


def _row(candidate: Candidate) -> dict[str, Any]:
    plan = candidate.plan
    return {
        "topology": plan.topology.label,
        "changes": candidate.changes,
        "compiled": candidate.compiled is not None,
        "peak_bytes": plan.peak,
        "fits": plan.fits,
        "step_seconds": plan.cost.step_seconds,
        "dollars_per_step": candidate.dollars,
    }


def table(found: Search) -> str:
    """The ranking, the config to use, and its plan."""
    lines = [
        f"{found.tried:,} configs by arithmetic, {found.fitting:,} may fit",
        f"{'$ a step':>12}{'seconds':>12}{'peak GiB':>10}  known by    config",
    ]
    shown = [*found.ranked[:10], found.fsdp_only]
    for candidate in shown:
        row = _row(candidate)
        name = "FSDP only: " if candidate is found.fsdp_only else ""
        known = "compiled" if row["compiled"] else "arithmetic"
        lines.append(
            f"{row['dollars_per_step']:12,.2f}{row['step_seconds']:12,.1f}"
            f"{row['peak_bytes'] / 2**30:10.1f}  {known:12}{name}{row['topology']} "
            f"{_short(candidate.changes)}{'' if row['fits'] else ' (does not fit)'}"
        )
    best = found.ranked[0]
    more = found.fsdp_only.dollars / best.dollars
    lines += [
        f"FSDP only costs {more:,.2f} times as much a step. Use:",
        f"  --topology={best.plan.topology.label} {arguments(best.changes)}",
        "",
        report.table(report.facts(best.plan)),
    ]
    return "\n".join(lines)


def _short(changes: dict[str, str]) -> str:
    mesh = [
        f"{key.removeprefix('mesh.')}={value}"
        for key, value in changes.items()
        if key.startswith("mesh.") and value != "1"
    ]
    rest = [
        f"{key.split('.')[-1]}={v}" for key, v in changes.items() if not key.startswith("mesh.")
    ]
    return " ".join(mesh + rest)
