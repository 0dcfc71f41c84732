"""AdamW's eps and the head's precision, two of MiniMax-M1's fixes (arXiv 2506.13585).

    python -m mmrl.studies.numerics --workdir=runs/numerics --processes=2

CISPO in bfloat16 compute from one warm start, eps 1e-15 against 1e-8 and a float32 against a
bfloat16 head, each pair on the same seeds. Beside the curves it reports

- the share of the second moments' roots below 1e-8, of parameters that ever had a gradient: only
  for those can the eps matter;
- the correlation of probabilities between a bfloat16-head and a float32-head evaluation of the
  same tokens by the same weights. Sampler and trainer are one function here, so they agree with
  either head, as the second correlation shows; the paper's 0.987 is of two programs.

Writes results.json and curves.svg into the workdir. Stopped or killed, it goes on by the same
command.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from flax import nnx

from mmrl import config as configs
from mmrl.compilation import enable_compilation_cache
from mmrl.errors import UserError
from mmrl.evaluation.estimators import paired_bootstrap
from mmrl.models import load
from mmrl.rl.metrics import probability_correlation, token_mean
from mmrl.studies import figures
from mmrl.studies.analysis import Curve, area, read_curve
from mmrl.studies.methods import Plan, Setting, rl_config, warm_start_config
from mmrl.studies.runs import PROCESSES, run_all
from mmrl.train import sample
from mmrl.training.config import TrainConfig
from mmrl.training.run import held_out_examples
from mmrl.training.state import abstract_model
from mmrl.training.update import score_logprobs

for _name in ("config", "workdir", "processes", "figure"):  # defined where they are used
    flags.declare_key_flag(_name)

PLAN = Plan(steps=60, seeds=(0, 1, 2))
SETTING = Setting("cispo", None, 4.0, 1e-4)
HeadDtype = Literal["float32", "bfloat16"]
PAPER = "paper"
# name: (Adam's eps, dtype of the head)
VARIANTS: dict[str, tuple[float, HeadDtype]] = {
    PAPER: (1e-15, "float32"),
    "eps-1e-8": (1e-8, "float32"),
    "bfloat16-head": (1e-15, "bfloat16"),
}


def study(
    base: TrainConfig, plan: Plan, workdir: Path, processes: int
) -> tuple[dict[str, Curve], dict[str, Any]]:
    """Runs what is left to run; the held-out curve of each variant and the results."""
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, dtype="bfloat16"))
    warm = workdir / "warmstart"
    run_all({"warmstart": warm_start_config(base)}, workdir, 1)
    names = {name: [f"{name}-seed{seed}" for seed in plan.seeds] for name in VARIANTS}
    runs = {
        names[name][i]: variant_config(
            rl_config(base, plan, SETTING, seed=seed, warm_start=warm), *options
        )
        for i, seed in enumerate(plan.seeds)
        for name, options in VARIANTS.items()
    }
    run_all(runs, workdir, processes)
    found = {name: [workdir / run for run in names[name]] for name in VARIANTS}
    curves = {name: read_curve(directories, "eval/solved") for name, directories in found.items()}
    papers = dict(zip(plan.seeds, found[PAPER], strict=True))
    probe = next(iter(runs.values()))
    results = {
        "plan": configs.to_dict(plan),
        "setting": SETTING.name,
        "variants": {name: variant_results(directories) for name, directories in found.items()},
        "difference": {
            name: dataclasses.astuple(paired_bootstrap(area(curves[name]), area(curves[PAPER])))
            for name in VARIANTS
            if name != PAPER
        },
        "heads": {"warm start": compare_heads(warm, probe)}
        | {f"after RL, seed {seed}": compare_heads(run, probe) for seed, run in papers.items()},
    }
    text = json.dumps(configs.to_dict(results), indent=2)
    (workdir / "results.json").write_text(text + "\n")
    return curves, results


def variant_config(config: TrainConfig, eps: float, head_dtype: HeadDtype) -> TrainConfig:
    model = dataclasses.replace(config.model, head_dtype=head_dtype)
    optimizer = dataclasses.replace(config.optimizer, eps=eps)
    return dataclasses.replace(config, model=model, optimizer=optimizer)


def variant_results(directories: list[Path]) -> dict[str, Any]:
    """Of a variant's runs: the solve rate at the end, the curve's height, and the numerics.

    The correlation is the least of all steps."""
    solved = read_curve(directories, "eval/solved")
    low, high = solved.interval()
    correlation = read_curve(directories, "logprob/correlation").values
    return {
        "held_out_solved": (float(solved.mean()[-1]), float(low[-1]), float(high[-1])),
        "mean_height": float(area(solved).mean()),
        "sampler_trainer_correlation": float(correlation.min()),
        "gradient_norm": float(read_curve(directories, "grad/norm").values.mean()),
        "moments_below_1e-8": float(np.mean([small_moments(path) for path in directories])),
    }


def small_moments(workdir: Path, bound: float = 1e-8) -> float:
    """Of the last checkpoint: the share of roots of Adam's second moments in (0, bound).

    Moments of exactly 0 (an embedding of a token that never came) are left out.
    """
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())
    leaves = ocp.tree.to_flat_dict(state["opt_state"])
    roots = np.sqrt(np.concatenate([np.ravel(x) for path, x in leaves.items() if "nu" in path]))
    return float((roots[roots > 0] < bound).mean())


def compare_heads(workdir: Path, config: TrainConfig) -> dict[str, float]:
    """One held-out rollout of the weights in `workdir`, scored with both heads."""
    model, _ = load(workdir, dtype=config.model.dtype)
    params = nnx.state(model)
    key = jax.random.key(0)
    rollout, _ = sample(model, held_out_examples(config), config, config.sampling, key)

    def logprobs(dtype: HeadDtype) -> jax.Array:
        model_config = dataclasses.replace(config.model, head_dtype=dtype)
        return score_logprobs(
            params,
            rollout.arrays(),
            graphdef=abstract_model(model_config)[0],
            temperature=config.sampling.temperature,
            micro_batches=1,
        )

    exact, rounded = logprobs("float32"), logprobs("bfloat16")
    return {
        "correlation": float(probability_correlation(exact, rounded, rollout.mask)),
        "logprob_difference": float(token_mean(abs(exact - rounded), rollout.mask)),
    }


def summary(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = ["variant        held out solved       height  sampler~trainer  √v < 1e-8"]
    for name, found in results["variants"].items():
        point, low, high = found["held_out_solved"]
        lines.append(
            f"{name:14} {point:.3f} [{low:.3f}, {high:.3f}]  {found['mean_height']:.4f}  "
            f"{found['sampler_trainer_correlation']:.9f}      {found['moments_below_1e-8']:.4f}"
        )
    for name, (point, low, high) in results["difference"].items():
        lines.append(
            f"mean height, {name} less the paper's: {point:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    for name, found in results["heads"].items():
        lines.append(
            f"float32 against bfloat16 head, {name}: correlation {found['correlation']:.6f}, "
            f"mean difference of log-probabilities {found['logprob_difference']:.1e}"
        )
    return "\n".join(lines)


def main(argv: list[str], overrides: dict[str, str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    enable_compilation_cache()
    base = configs.load(flags.FLAGS.config or "configs/quickstart.py")
    base = configs.override(base, overrides)
    workdir = Path(flags.FLAGS.workdir or "runs/numerics")
    curves, results = study(base, PLAN, workdir, PROCESSES.value)
    print(summary(results))
    for path in figures.paths(workdir):
        figure, axes = figures.new_figure(1, 1)
        figures.draw_curves(axes[0, 0], curves, "held-out solve rate")
        figures.save(figure, path)


if __name__ == "__main__":
    configs.run(main, overrides=True)
