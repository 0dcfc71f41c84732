"""How fast the kernels are: `python -m pallas_kernels.bench` times them on this machine.

It prints wall time, achieved FLOP/s and bytes/s and their share of the peaks measured beside them,
against softmax flash attention, and on a CPU against PyTorch and transformers where installed.
With `--static` it times nothing, and compiles the kernels for chips that this machine need not
have: their distance to the hardware's floor (see `static_report`).
"""

from pathlib import Path

import jax
from absl import app, flags

from pallas_kernels import plot, static_report, timing

_STATIC = flags.DEFINE_bool("static", False, "compile for chips and report, instead of timing")
_LENGTHS = flags.DEFINE_list("lengths", None, "tokens a row")
_BATCH = flags.DEFINE_integer("batch", 1, "rows", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", None, "heads", lower_bound=1)
_DIMS = flags.DEFINE_list("head_dims", None, "widths of a head")
_DTYPES = flags.DEFINE_list("dtypes", None, "dtypes of q, k and v")

_ONLY = flags.DEFINE_list("only", None, "timing: of these contestants; default: all")
_REPEATS = flags.DEFINE_integer("repeats", 10, "timing: runs, the fastest counts", lower_bound=1)
_PLOT = flags.DEFINE_string("plot", None, "timing: an SVG to write, of seconds over tokens")

_KERNELS = flags.DEFINE_list("kernels", list(static_report.KERNELS), "static: kernels")
_CHIPS = flags.DEFINE_list("chips", list(static_report.CHIPS), "static: chips")
_DECODE_BATCH = flags.DEFINE_integer("decode_batch", 64, "static: rows in decoding", lower_bound=1)
_SEGMENTS = flags.DEFINE_bool("segments", False, "static: with segment ids")

_OF_M1 = {"lengths": ["4096", "131072"], "heads": 64, "head_dims": ["128"], "dtypes": ["bfloat16"]}
_OF_A_CPU = {
    "lengths": ["1024", "2048", "4096", "8192"],
    "heads": 8,
    "head_dims": ["64"],
    "dtypes": ["float32"],
}


def _sizes() -> dict:
    """The flags that say what to run, or those of MiniMax-M1, or sizes a CPU takes seconds for."""
    flag = {"lengths": _LENGTHS, "heads": _HEADS, "head_dims": _DIMS, "dtypes": _DTYPES}
    small = not _STATIC.value and jax.default_backend() == "cpu"
    defaults = _OF_A_CPU if small else _OF_M1
    return {name: defaults[name] if x.value is None else x.value for name, x in flag.items()}


def _known(flag: str, names: list[str], choices) -> list[str]:
    for name in names:
        if name not in choices:
            raise app.UsageError(f"--{flag}: there is no {name!r}; choose from {list(choices)}")
    return names


def report_statically() -> None:
    """Prints the static report of what the flags name."""
    sizes = _sizes()
    jobs = static_report.jobs(
        chips=_known("chips", _CHIPS.value, static_report.CHIPS),
        kernels=_known("kernels", _KERNELS.value, static_report.KERNELS),
        lengths=[int(x) for x in sizes["lengths"]],
        batch=_BATCH.value,
        decode_batch=_DECODE_BATCH.value,
        heads=sizes["heads"],
        dims=[int(x) for x in sizes["head_dims"]],
        dtypes=sizes["dtypes"],
        segments=_SEGMENTS.value,
    )
    static_report.print_report(jobs)


def time_here() -> None:
    """Prints the timings of what the flags name and draws them."""
    timing.use_every_core()
    sizes = _sizes()
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), the fastest of {_REPEATS.value} runs")
    contestants = timing.contestants()
    names = _known("only", _ONLY.value or list(contestants), contestants)
    for dtype in sizes["dtypes"]:
        peaks = timing.peaks(dtype)
        print(
            f"measured peaks in {dtype}: {peaks.flops / 1e12:.3f} TFLOP/s in a matrix product, "
            f"{peaks.bandwidth / 1e9:.1f} GB/s in a copy"
        )
        for dim in map(int, sizes["head_dims"]):
            of_width = []
            for length in map(int, sizes["lengths"]):
                shape = timing.Shape(_BATCH.value, length, sizes["heads"], dim, dtype)
                for name in names:
                    for row in contestants[name](shape, _REPEATS.value):
                        print(_line(row, peaks), flush=True)
                        of_width.append(row)
            if _PLOT.value:
                _draw(of_width, device.device_kind, Path(_PLOT.value))


def _line(row: timing.Timing, peaks: timing.Peaks) -> str:
    batch, length, heads, dim, dtype = row.shape
    flops, moved = row.flops / row.seconds, row.moved / row.seconds
    return (
        f"{row.contestant:>12} {row.direction:<16} B={batch} T={length:<6} H={heads} D={dim}"
        f" {dtype} {1e3 * row.seconds:>10.3f} ms"
        f" {flops / 1e12:>8.3f} TFLOP/s ({flops / peaks.flops:>4.0%})"
        f" {moved / 1e9:>8.1f} GB/s ({moved / peaks.bandwidth:>4.0%})"
    )


def _draw(rows: list[timing.Timing], device: str, path: Path) -> None:
    """Seconds of the pass with gradients over T, a file for each width and dtype."""
    lines: dict[str, list[plot.Point]] = {}
    for row in rows:
        if row.direction == timing.PASSES[1]:
            point = (row.shape.length, 1e3 * row.seconds)
            lines.setdefault(row.contestant, []).append(point)
    if not lines:
        return
    _, _, heads, dim, dtype = rows[0].shape
    title = f"Attention forward and backward, {heads} heads of {dim}, {dtype}, {device}"
    picture = plot.log_log_svg(lines, title=title, x_label="tokens", y_label="milliseconds")
    path = path.with_stem(f"{path.stem}_{dim}_{dtype}")
    path.write_text(picture, encoding="utf-8")
    print(f"wrote {path}")


def main(_: list[str]) -> None:
    if _STATIC.value:
        report_statically()
    else:
        time_here()


if __name__ == "__main__":
    app.run(main)
