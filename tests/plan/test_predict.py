"""A whole plan on this machine's CPU, its table, its advice, the search and the binary."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_run import run_module

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.models import parameter_count
from mmrl.plan import report, search
from mmrl.plan.advice import remedies
from mmrl.plan.arithmetic import step_flops
from mmrl.plan.devices import parse_topology
from mmrl.plan.hlo import Collective
from mmrl.plan.predict import make_plan, step_of, transfers, warnings
from mmrl.sharding import MeshConfig

PATH = Path(__file__).parents[1] / "configs" / "small_plan.py"
CONFIG = configs.load(PATH)
CPU4 = parse_topology("cpu:4")


@pytest.fixture(scope="module")
def plan():
    return make_plan(CONFIG, CPU4, steps=100, dollars_per_hour=2.0)


def with_memory(topology, hbm_bytes: float):
    chip = dataclasses.replace(topology.chip, hbm_bytes=hbm_bytes)
    return dataclasses.replace(topology, chip=chip)


def test_a_plan_holds_what_waits_beside_each_program(plan):
    assert set(plan.programs) == {"reshard", "rollout", "update"}
    assert plan.needed["update"] == plan.programs["update"].memory.total
    waiting = plan.needed["rollout"] - plan.programs["rollout"].memory.total
    moments = 2 * 4 * parameter_count(CONFIG.model)[0] / 4
    assert waiting == pytest.approx(moments, rel=0.05)  # norms are on every device
    assert plan.peak == max(plan.needed.values()) and plan.fits


def test_compiled_programs_need_at_least_what_arithmetic_says(plan):
    estimated = make_plan(CONFIG, CPU4, compiled=False)
    for name, size in estimated.needed.items():
        assert size <= plan.needed[name] * 1.25


def test_a_run_costs_its_hours_at_the_price(plan):
    cost = plan.cost
    hours = cost.step_seconds * 100 / 3600
    assert cost.dollars == pytest.approx(hours * 4 * 2.0)
    useful = sum(
        f.total for f in step_flops(CONFIG.model, plan.step.work, recompute=False).values()
    )
    assert cost.mfu == pytest.approx(useful / cost.step_seconds / (4 * CPU4.chip.peak_bfloat16))


def test_traffic_is_summed_by_group_with_loops_and_repeats():
    def collective(devices, span, size, times):
        return Collective("all-gather", "c", ((1,),), devices, size, times, span=span)

    found = transfers(
        [collective(4, 4, 100, 3), collective(4, 4, 40, None), collective(4, 16, 8, 1)], repeats=2
    )
    assert {(x.devices, x.span): (x.bytes, x.times) for x in found} == {
        (4, 4): (2 * (3 * 75 + 30), 8),
        (4, 16): (2 * 6, 2),
    }


def test_what_devices_repeat_is_said():
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(1, 1, 4, 1, 2), micro_batches=4)
    plan = make_plan(config, parse_topology("cpu:8"), compiled=False)
    assert warnings(plan) == ["2 prompts of a micro-batch are not cut over expert=4 in the update"]
    assert warnings(make_plan(CONFIG, CPU4, compiled=False)) == []


def test_a_mesh_that_does_not_fit_the_slice_is_the_users_mistake():
    with pytest.raises(UserError, match="needs 3 devices but 4"):
        step_of(dataclasses.replace(CONFIG, mesh=MeshConfig(data=3)), CPU4)


def test_remedies_are_changes_that_fit(plan):
    enough = plan.peak - 1
    tight = dataclasses.replace(plan, topology=with_memory(CPU4, enough))
    assert not tight.fits
    found = remedies(tight)
    assert found
    for line in found:
        changes = dict(
            word.removeprefix("--config.").split("=") for word in line.split() if "=" in word
        )
        changed = make_plan(configs.override(tight.config, changes), tight.topology, compiled=False)
        before = make_plan(tight.config, tight.topology, compiled=False)
        assert changed.needed["update"] <= before.needed["update"]
    text = report.table(report.facts(tight))
    largest = plan.programs["update"].memory.largest[0].shape
    assert "DOES NOT FIT" in text and f"would fit: {found[0]}" in text and largest in text


def test_the_table_and_the_json_say_the_same(plan):
    found = report.facts(plan)
    assert json.loads(json.dumps(found)) == found
    total, active = parameter_count(CONFIG.model)
    text = report.table(found)
    assert f"{total:,} total, {active:,} active" in text and "fits" in text
    assert [phase["name"] for phase in found["phases"]] == [
        "reshard",
        "prefill",
        "decode",
        "update",
    ]
    assert f"${found['dollars']:,.0f} at $2.00" in text and "50% of peak FLOP/s" in text
    assert found["programs"]["update"]["sent"]["all-gather"]["bytes"] > 0


def test_the_search_tries_every_mesh_and_ranks_by_price():
    found = search.search(CONFIG, CPU4, dollars_per_hour=1.0, compilations=0)
    meshes = {tuple(dataclasses.astuple(m)) for m in search.meshes(CONFIG, CPU4)}
    assert (4, 1, 1, 1, 1) in meshes and (1, 1, 2, 1, 2) in meshes and (1, 1, 1, 4, 1) in meshes
    assert found.tried == len(meshes) == 15  # two factors of 2 on five axes
    prices = [candidate.dollars for candidate in found.ranked]
    assert prices == sorted(prices)
    assert found.ranked[0].dollars <= found.fsdp_only.dollars
    assert found.fsdp_only.plan.step.mesh == MeshConfig(1, 4, 1, 1, 1)
    best = configs.override(CONFIG, found.ranked[0].changes)
    assert make_plan(best, CPU4, dollars_per_hour=1.0, compiled=False).cost.dollars == (
        found.ranked[0].plan.cost.dollars
    )


def test_the_search_passes_over_what_compiled_programs_say_cannot_fit(monkeypatch):
    calls = []

    def compiled(config, topology, dollars_per_hour=None, compiled=True):
        plan = make_plan(config, topology, dollars_per_hour=dollars_per_hour, compiled=False)
        if not compiled:
            return plan
        calls.append(config.mesh)
        more = {name: size + 2e6 for name, size in plan.needed.items()}
        return dataclasses.replace(plan, needed=more)

    monkeypatch.setattr(search, "make_plan", compiled)
    estimates = [c.estimated.peak for c in search.search(CONFIG, CPU4, compilations=0).ranked]
    limit = sorted(estimates)[len(estimates) // 2] + 2e6
    found = search.search(CONFIG, with_memory(CPU4, limit), compilations=2)
    known = [c for c in found.ranked if c.compiled is not None]
    assert len(known) in (2, 3) and all(c.plan.fits for c in known)
    assert found.fsdp_only.compiled is not None
    # After one that does not fit, all like it are passed over; FSDP alone is compiled to compare.
    assert len(calls) <= 4
    assert found.ranked[0].dollars <= found.fsdp_only.dollars or not found.fsdp_only.plan.fits


def test_nothing_fits_a_slice_that_is_too_small():
    with pytest.raises(UserError, match="nothing fits cpu:4"):
        search.search(CONFIG, with_memory(CPU4, 1e5), compilations=0)


def test_a_budget_buys_the_slices_below_it():
    v6e = parse_topology("v6e:2x4")
    found = search.search(CONFIG, v6e, budget_per_hour=12.0, compilations=0)
    places = {c.plan.topology.label for c in found.ranked}
    assert places == {"v6e:1x1", "v6e:2x2"}  # $2.70 a chip
    with pytest.raises(UserError, match="buys no v6e"):
        search.search(CONFIG, v6e, budget_per_hour=1.0, compilations=0)


def test_the_binary_plans_for_a_cpu():
    done = run_module("mmrl.plan", f"--config={PATH}", "--topology=cpu:2", "--nocompile", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 2 and found["mesh"]["fsdp"] == 2 and found["bytes"]["fits"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=cpu:2"], "--config=FILE is missing"),
        ([f"--config={PATH}"], "--topology is missing"),
        ([f"--config={PATH}", "--topology=v7x:2"], "no chip 'v7x'"),
        ([f"--config={PATH}", "--topology=cpu:2", "--config.mesh.fdsp=2"], "Did you mean"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run_module("mmrl.plan", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
