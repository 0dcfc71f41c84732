"""Other frameworks on the same workloads: their scripts, in their environments, taking turns.

A script runs RL steps of a workload and prints one JSON line: `step_s`, the median seconds of a
step after the first, and `peak_rss_mb`.
"""

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mmrl.benchmark.workload import WORKLOADS, Workload
from mmrl.errors import UserError

SCRIPTS = {"trl": "trl_step.py", "tunix": "tunix_step.py"}
RANDOM_ENDS = Path(__file__).with_name("random_ends.py")
LARGE_PAGES = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"  # where Linux gives them on request
# Tunix has no length a response; its cache holds no more than 512 tokens of B.
LEFT_OUT = {("tunix", "C")}
TUNIX_NEW_TOKENS = {"B": 448}


def command(name: str, python: str, scripts: str, workload: str, steps: int) -> list[str]:
    """The peer's script with the sizes of a workload."""
    sizes: Workload = WORKLOADS[workload]
    script = str(Path(scripts) / SCRIPTS[name])
    new_tokens = TUNIX_NEW_TOKENS.get(workload, sizes.new_tokens)
    arguments = {
        "steps": steps,
        "prompts": sizes.prompts,
        "samples": sizes.samples,
        "plen": sizes.prompt_length,
        "new": sizes.new_tokens if name == "trl" else new_tokens,
    }
    if name == "trl":
        arguments["micro"] = sizes.rows
    ends = [] if sizes.shortest is None else [str(RANDOM_ENDS), str(sizes.shortest)]
    flags = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    return [python, *ends, script, *flags]


def measure(arguments: Sequence[str]) -> dict:
    """What the command's last line says. Raises UserError with the end of what it wrote."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UserError(f"{' '.join(arguments[:3])} failed: {tail}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(
    ours: Sequence[str],
    scripts: str | None,
    pythons: dict[str, str],
    workloads: Sequence[str],
    rounds: int,
    steps: int,
) -> str:
    """A row for each workload and framework: medians of the rounds, spreads and ratios."""
    lines = [
        "| workload | framework | s a step, median (range) | of mmrl's | tokens/s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for workload in workloads:
        own = [*ours, f"--workload={workload}", f"--steps={steps}"]
        commands = {"mmrl": own, "mmrl, large pages": ["env", LARGE_PAGES, *own]}
        commands |= {
            name: command(name, python, scripts or ".", workload, steps)
            for name, python in pythons.items()
            if (name, workload) not in LEFT_OUT
        }
        turns = [{name: measure(c) for name, c in commands.items()} for _ in range(rounds)]
        base = statistics.median(turn["mmrl"]["step_s"] for turn in turns)
        for name in commands:
            lines.append(row(workload, name, [turn[name] for turn in turns], base))
    return "\n".join(lines) + "\n"


def row(workload: str, name: str, runs: Sequence[dict], base: float) -> str:
    """One line of the table; `base` are mmrl's seconds."""
    seconds, steps = [r["step_s"] for r in runs], [s for r in runs for s in r["all"][1:]]
    median = statistics.median(seconds)
    tokens = f"{statistics.median(r['tokens_per_s'] for r in runs):,.0f}"
    if name in SCRIPTS and WORKLOADS[workload].shortest is not None:
        tokens = "–"  # a peer's script counts as if no response ended early
    peak = statistics.median(r["peak_rss_mb"] for r in runs)
    spread = f"{min(steps):.2f} to {max(steps):.2f}"
    return (
        f"| {workload} | {name} | {median:.2f} ({spread}) | {median / base:.2f} | {tokens} |"
        f" {peak:,.0f} |"
    )
