"""Does CISPO reach DAPO's score in half the steps? MiniMax-M1, arXiv 2506.13585.

    python -m mmrl.studies.cispo_vs_dapo --workdir=runs/cispo_vs_dapo --processes=2

CISPO, DAPO and GRPO from one warm start, 16 optimizer steps on a rollout. Each is tuned on a grid
of clips and learning rates of the same size, on seeds and held-out problems of their own, by the
mean height of its held-out curve; then the best settings run on further seeds. Writes results.json
and curves.svg into the workdir, and prints a summary. Stopped or killed, it goes on by the same
command. `--reduced` is a small grid, shorter runs and fewer seeds; `--notune` takes the settings
that an earlier tuning found.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.studies import figures
from mmrl.studies.analysis import Curve, area, by_probability, race, read_curve
from mmrl.studies.methods import (
    CLIPS,
    PROBABILITY_BINS,
    TUNED_CLIPS,
    Plan,
    Setting,
    rl_config,
    warm_start_config,
)
from mmrl.studies.runs import PROCESSES, run_all
from mmrl.training.config import TrainConfig

for _name in ("config", "workdir", "processes", "figure"):  # defined where they are used
    flags.declare_key_flag(_name)
_REDUCED = flags.DEFINE_boolean("reduced", False, "The small form.")
_TUNE = flags.DEFINE_boolean("tune", True, "False takes the settings that docs/studies.md found.")

FULL = Plan()
REDUCED = Plan(
    steps=60,
    tuning_steps=40,
    learning_rates=(1e-4, 3e-4),
    seeds=(0, 1, 2),
    clips={method: clips[:2] for method, clips in CLIPS.items()},
)
CURVES = {
    "solved": "eval/solved",
    "entropy": "policy/entropy",
    "gradient_norm": "grad/norm",
    "clip_fraction": "loss/clip_fraction",
    "dropped_fraction": "loss/dropped_fraction",
}


def study(
    base: TrainConfig, plan: Plan, workdir: Path, processes: int
) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Runs what is left to run; the final runs {method: a directory a seed} and the results.

    Also writes the results to `workdir/results.json`.
    """
    warm = workdir / "warmstart"
    run_all({"warmstart": warm_start_config(base)}, workdir, 1)

    def train_all(part: str, settings: list[Setting], seeds: tuple[int, ...]):
        names = {(s, seed): f"{part}/{s.name}-seed{seed}" for seed in seeds for s in settings}
        runs = {
            name: rl_config(base, plan, s, seed=seed, warm_start=warm, tuning=part == "tuning")
            for (s, seed), name in names.items()
        }
        run_all(runs, workdir, processes)
        return {s: [workdir / names[s, seed] for seed in seeds] for s in settings}

    grids = {method: plan.grid(method) for method in plan.clips}
    tried = [s for grid in grids.values() if len(grid) > 1 for s in grid]
    tuned = train_all("tuning", tried, plan.tuning_seeds)
    heights = {s: float(area(read_curve(runs, "eval/solved")).mean()) for s, runs in tuned.items()}
    best = {method: max(grid, key=lambda s: heights.get(s, 0.0)) for method, grid in grids.items()}
    final = train_all("final", list(best.values()), plan.seeds)
    runs = {setting.method: directories for setting, directories in final.items()}
    results = {
        "plan": configs.to_dict(plan),
        "tuning": {setting.name: height for setting, height in heights.items()},
        "settings": {method: setting.name for method, setting in best.items()},
        **compare(runs),
    }
    text = json.dumps(configs.to_dict(results), indent=2)
    (workdir / "results.json").write_text(text + "\n")
    return runs, results


def compare(runs: Mapping[str, list[Path]]) -> dict[str, Any]:
    """What the final runs {method: a directory a seed} say, as JSON values."""
    curves = {method: read_curve(dirs, "eval/solved") for method, dirs in runs.items()}
    races = {method: race(curve, curves["dapo"]) for method, curve in curves.items()}
    return {
        "held_out_solved": {m: last_with_interval(curve) for m, curve in curves.items()},
        "mean_height": {m: float(area(curve).mean()) for m, curve in curves.items()},
        "steps_to_dapo": {m: dataclasses.asdict(race_) for m, race_ in races.items()},
        "verdict": races["cispo"].verdict,
        "means": {
            name: {m: float(read_curve(dirs, key).values.mean()) for m, dirs in runs.items()}
            for name, key in CURVES.items()
            if name != "solved"
        },
        "by_probability": {
            method: {
                name: values.tolist()
                for name, values in by_probability(dirs, len(PROBABILITY_BINS) + 1).items()
            }
            for method, dirs in runs.items()
        },
    }


def last_with_interval(curve: Curve) -> tuple[float, float, float]:
    low, high = curve.interval()
    return float(curve.mean()[-1]), float(low[-1]), float(high[-1])


def draw(runs: Mapping[str, list[Path]], path: Path) -> None:
    """Learning, entropy, gradient norm, and what becomes of rare tokens, in six panels."""
    figure, axes = figures.new_figure(2, 3)
    places = axes.flat
    for name, title in (
        ("solved", "held-out solve rate"),
        ("entropy", "entropy of the policy, nats a token"),
        ("gradient_norm", "gradient norm"),
        ("dropped_fraction", "tokens that lose their gradient, share"),
    ):
        curves = {method: read_curve(dirs, CURVES[name]) for method, dirs in runs.items()}
        figures.draw_curves(next(places), curves, title)
    found = {m: by_probability(dirs, len(PROBABILITY_BINS) + 1) for m, dirs in runs.items()}
    clipped = {m: bins["clipped"] for m, bins in found.items()}
    weight = {m: bins["gradient"] / bins["tokens"] for m, bins in found.items()}
    for bins, title in (
        (clipped, "tokens with a ratio out of bounds, share of the bin"),
        (weight, "gradient a token, over its mean"),
    ):
        figures.draw_bins(next(places), bins, PROBABILITY_BINS, title)
    figures.save(figure, path)


def summary(results: Mapping[str, Any]) -> str:
    """The results as text."""

    def interval(values, digits: int) -> str:
        point, low, high = (f"{value:.{digits}f}" for value in values)
        return f"{point} [{low}, {high}]"

    lines = [
        "method setting                 held out solved         steps to DAPO's score    share"
    ]
    for method, name in results["settings"].items():
        found = results["steps_to_dapo"][method]
        lines.append(
            f"{method:6} {name.removeprefix(method + '-'):22} "
            f"{interval(results['held_out_solved'][method], 3):23} "
            f"{interval(found['steps'], 1):24} {interval(found['share'], 2)}"
        )
    lines += ["", "means over the runs"]
    for name, values in results["means"].items():
        lines.append(f"  {name:18}" + "".join(f"{m:>8} {v:.4f}" for m, v in values.items()))
    bounds = (0.0, *PROBABILITY_BINS, 1.0)
    lines += ["", "by behaviour probability: share of tokens, clipped, dropped, share of gradient"]
    for method, bins in results["by_probability"].items():
        for i, shares in enumerate(zip(*bins.values(), strict=True)):
            edges = f"{bounds[i]:g} to {bounds[i + 1]:g}"
            lines.append(f"  {method:6} {edges:12}" + "".join(f"{share:9.4f}" for share in shares))
    lines += ["", f"CISPO in half of DAPO's steps: {results['verdict']}"]
    return "\n".join(lines)


def main(argv: list[str], overrides: dict[str, str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    base = configs.load(flags.FLAGS.config or "configs/quickstart.py")
    base = configs.override(base, overrides)
    plan, name = (REDUCED, "_reduced") if _REDUCED.value else (FULL, "")
    if not _TUNE.value:
        plan = dataclasses.replace(plan, learning_rates=(1e-4,), clips=TUNED_CLIPS)
    workdir = Path(flags.FLAGS.workdir or f"runs/cispo_vs_dapo{name}")
    runs, results = study(base, plan, workdir, PROCESSES.value)
    print(summary(results))
    for path in figures.paths(workdir):
        draw(runs, path)


if __name__ == "__main__":
    configs.run(main, overrides=True)
