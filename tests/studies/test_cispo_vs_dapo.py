"""The comparison: what is tuned, what is chosen, and that all methods have equal rollouts."""

import json
from pathlib import Path

import pytest

from mmrl import config as configs
from mmrl.studies import cispo_vs_dapo
from mmrl.studies.cispo_vs_dapo import FULL, REDUCED, study, summary
from mmrl.studies.methods import CLIPS

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
BEST = {"cispo": (1.0, 3e-4), "dapo": (0.28, 1e-3), "grpo": (0.4, 1e-4)}  # eps_high, rate


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """The study with made-up runs, in which a method learns by its best setting alone."""
    trained = {}

    def run_all(runs, directory, processes):
        trained.update(runs)
        for name, config in runs.items():
            objective = config.objective
            setting = (objective.eps_high, config.optimizer.learning_rate)
            speed = 0.01 if setting == BEST[objective.name] else 0.001
            speed *= 2 if objective.name == "cispo" else 1
            steps = range(0, config.steps + 1, config.evaluation.interval)
            (directory / name).mkdir(parents=True)
            lines = [
                json.dumps(
                    {"step": s, "phase": "rl", "eval/solved": min(speed * s, 0.9), "grad/norm": 1.0}
                    | dict.fromkeys(("policy/entropy", "loss/clip_fraction"), 0.5)
                    | {"loss/dropped_fraction": 0.25}
                    | {f"probability/{n}/{i}": 1 / 6 for i in range(6)
                       for n in ("tokens", "clipped", "dropped", "gradient")}
                ) for s in steps
            ]  # fmt: skip
            (directory / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(cispo_vs_dapo, "run_all", run_all)
    _, results = study(configs.load(QUICKSTART), FULL, tmp_path, 1)
    return trained, results


def test_each_method_is_tuned_with_as_many_runs_and_the_best_setting_is_chosen(studied):
    trained, results = studied
    for method, (high, rate) in BEST.items():
        tuning = [n for n in trained if n.startswith(f"tuning/{method}")]
        assert len(tuning) == 3 * len(FULL.learning_rates) * len(FULL.tuning_seeds)
        final = [c for n, c in trained.items() if n.startswith(f"final/{method}")]
        assert [c.seed for c in final] == [0, 1, 2, 3, 4]
        assert {(c.objective.eps_high, c.optimizer.learning_rate) for c in final} == {(high, rate)}
    assert results["steps_to_dapo"]["cispo"]["share"] == (0.5, 0.5, 0.5)
    assert results["verdict"] == "reproduced"
    assert "CISPO in half of DAPO's steps: reproduced" in summary(results)


def test_runs_differ_in_method_clip_rate_and_seed_alone(studied):
    """So rollouts are equal: prompts of a seed, samples, updates, steps and the first weights."""
    trained, _ = studied
    final = [configs.to_dict(c) for n, c in trained.items() if n.startswith("final/")]
    for config in final:
        assert config["data"].pop("seed") == config.pop("seed")
        for name in ("name", "eps_low", "eps_high"):
            config["objective"].pop(name)
        config["optimizer"].pop("learning_rate")
        assert config == final[0]
    assert final[0]["updates_per_rollout"] == 16
    assert final[0]["initial"].endswith("warmstart")


def test_tuning_has_seeds_and_held_out_problems_of_its_own(studied):
    trained, _ = studied
    parts = {
        part: [c for n, c in trained.items() if n.startswith(part)] for part in ("tuning", "final")
    }
    seeds, problems = (
        {part: {value(c) for c in found} for part, found in parts.items()}
        for value in (lambda c: c.seed, lambda c: c.evaluation.data.seed)
    )
    assert not seeds["tuning"] & seeds["final"] and not problems["tuning"] & problems["final"]
    assert all(c.evaluation.data.split == "held_out" for c in trained.values() if c.steps)


def test_no_clip_of_cispo_has_a_lower_bound_and_grids_are_equal_in_size():
    assert {low for low, _ in CLIPS["cispo"]} == {None}
    for plan in (FULL, REDUCED):
        assert len({len(plan.grid(method)) for method in plan.clips}) == 1
