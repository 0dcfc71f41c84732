"""What `--reproduce` prints and plots: the published sizes, FLOPs and prices, computed again."""

import itertools
from pathlib import Path
from typing import Any

from mmrl.errors import UserError
from mmrl.models import parameter_count
from mmrl.plan.devices import parse_topology
from mmrl.plan.generation_flops import FIGURE, LENGTHS, conventions, figure
from mmrl.plan.memory import parameter_bytes
from mmrl.plan.presets import PRESETS
from mmrl.plan.roofline import Efficiency, device_dollars
from mmrl.plan.serving import LIST_PRICES, serving

PUBLISHED = {
    "minimax_m1": "456B, 45.9B active; 912,210,767,872 bytes of released weights",
    "minimax_m2": "228.7B (Hugging Face), 10B active",
    "qwen2_5_7b": "7.61B, 6.53B without embeddings",
}
# The paper's training run (arXiv 2506.13585, abstract). It states no hourly price.
GPUS, DAYS, DOLLARS = 512, 21, 534_700
# (preset, slice, bytes a weight, batches) of the serving table. The released M2 is FP8.
SERVED = (
    ("minimax_m2", "h100:8", 1, (1, 16, 64, 128)),
    ("minimax_m2", "v6e:4x4", 1, (1, 16, 64)),
    ("minimax_m1", "h100:8", 1, (1, 64, 256)),
    ("minimax_m1", "v5p:2x4x4", 2, (1, 64, 1024)),
)
PROMPT, RESPONSE = 8192, 2048


def facts() -> dict[str, Any]:
    """Everything that the report says, as numbers."""
    return {
        "parameters": {
            name: {
                "total": parameter_count(preset())[0],
                "active": parameter_count(preset())[1],
                "bytes": parameter_bytes(preset()),
            }
            for name, preset in PRESETS.items()
        },
        "m1_over_r1": {
            convention.name: {
                "counts": convention.counts,
                "ratio": {name: convention.ratio(n) for name, n in LENGTHS.items()},
            }
            for convention in conventions()
        },
        "training": training(),
        "serving": [
            {
                "model": model,
                "topology": topology,
                "bytes_per_weight": width,
                "batch": row.batch,
                "dollars_in": row.dollars_in,
                "dollars_out": row.dollars_out,
                "tokens_per_second_per_row": row.tokens_per_second_per_row,
                "decode_bound": row.decode.bound,
                "dollars_per_device_hour": row.dollars_per_hour,
            }
            for model, topology, width, batches in SERVED
            for row in (
                serving(
                    PRESETS[model](),
                    parse_topology(topology),
                    batch=batch,
                    prompt=PROMPT,
                    response=RESPONSE,
                    weight_bytes=width,
                )
                for batch in batches
            )
        ],
        "list_prices": LIST_PRICES,
    }


def training() -> dict[str, float]:
    """The paper's $534,700 as GPU-hours: at exactly three weeks, and at $2 an hour."""
    hours = GPUS * DAYS * 24
    return {
        "gpus": GPUS,
        "gpu_hours": hours,
        "dollars": DOLLARS,
        "dollars_per_gpu_hour": DOLLARS / hours,
        "days_at_2_dollars": DOLLARS / device_dollars(GPUS, 1, 2.0),
        "dollars_of_3_weeks_at_2_dollars": device_dollars(GPUS, DAYS, 2.0),
    }


def report() -> str:
    """The text of `--reproduce`."""
    found = facts()
    parts = (
        _parameters(found["parameters"]),
        _ratios(found["m1_over_r1"]),
        _training(found["training"]),
        _serving(found["serving"]),
    )
    return "\n".join(itertools.chain.from_iterable((*part, "") for part in parts))


def _parameters(found: dict) -> list[str]:
    lines = ["Parameters, exact; active without embedding and head; bytes as stored"]
    for name, row in found.items():
        lines.append(
            f"  {name:12}{row['total']:>17,}{row['active']:>16,}{row['bytes']:>17,}"
            f"   published: {PUBLISHED[name]}"
        )
    return lines


def _ratios(found: dict) -> list[str]:
    paper = found["figure"]["ratio"]
    lines = [
        "FLOPs of MiniMax-M1 over DeepSeek-R1 by generation length (K = 1,024)",
        f"  {'convention':14}" + "".join(f"{name:>9}" for name in LENGTHS) + "   off the figure",
    ]
    for name, row in found.items():
        ratios = row["ratio"]
        off = max(abs(ratios[length] / paper[length] - 1) for length in LENGTHS)
        numbers = "".join(f"{ratio:9.3f}" for ratio in ratios.values())
        lines.append(f"  {name:14}{numbers}   up to {off:.0%}: {row['counts']}")
    return [
        *lines,
        "  The paper says below 0.5 at 64K and approximately 0.25 at 100K: its own figure has 0.29",
        "  there and 0.244 at 128K; token 100,000 alone has 0.22 (marginal).",
    ]


def _training(found: dict) -> list[str]:
    return [
        "Training: 512 H800 for three weeks, $534,700",
        f"  {found['gpu_hours']:,} GPU-hours in 21 days: ${found['dollars_per_gpu_hour']:.4f} each",
        f"  at $2.00: {found['days_at_2_dollars']:.2f} days; three weeks would be "
        f"${found['dollars_of_3_weeks_at_2_dollars']:,.0f}",
        "  The hourly price is not in the paper; $2 and 21.76 days is the natural reading.",
    ]


def _serving(found: list[dict]) -> list[str]:
    lines = [
        f"Serving: {PROMPT:,} tokens in and {RESPONSE:,} out, one tensor-parallel group",
        "  No idle time and no margin, which list prices have; no latency of kernels and links,",
        "  so small batches look faster than they are.",
        f"  {Efficiency()}",
        f"  {'model':12}{'slice':12}{'B/weight':>9}{'batch':>7}{'$/chip-hour':>13}"
        f"{'$/M in':>9}{'$/M out':>9}{'tokens/s a row':>16}  decode bound by",
    ]
    for row in found:
        lines.append(
            f"  {row['model']:12}{row['topology']:12}{row['bytes_per_weight']:9}{row['batch']:7}"
            f"{row['dollars_per_device_hour']:13.2f}{row['dollars_in']:9.2f}"
            f"{row['dollars_out']:9.2f}{row['tokens_per_second_per_row']:16.1f}"
            f"  {row['decode_bound']}"
        )
    for name, (dollars_in, dollars_out) in LIST_PRICES.items():
        lines.append(f"  {name:53}{dollars_in:9.2f}{dollars_out:9.2f}")
    return lines


def plot(path: str | Path) -> None:
    """A PNG of FLOPs and of M1 over R1 against generation length.

    Raises `UserError` without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f"cannot draw {path}: matplotlib is missing; pip install '.[plan]', or plot nothing"
        ) from error
    lengths = [1024 * n for n in range(1, 129)]
    thousands = [n / 1024 for n in lengths]
    drawing = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for model in FIGURE:
        left.plot(thousands, [figure(model, n) for n in lengths], label=model)
    left.set(title="FLOPs of N tokens, the paper's curves", ylabel="FLOPs")
    for convention in conventions():
        ratios = [convention.ratio(n) for n in lengths]
        style = "-" if convention.name == "figure" else "--"
        right.plot(thousands, ratios, style, label=convention.name)
    right.axhline(0.25, color="grey", linewidth=0.8, linestyle=":")
    right.set(title="MiniMax-M1 over DeepSeek-R1", ylabel="ratio of FLOPs", ylim=(0, 1.5))
    for axes in (left, right):
        axes.set_xlabel("generation length N, thousands of 1,024 tokens")
        axes.legend(frameon=False)
    drawing.savefig(path, format="png", dpi=150)
