"""Distance of the TPU kernels to the hardware's floor: `python -m pallas_kernels.static`."""

import itertools
import json

from absl import app, flags

from pallas_kernels import static_analysis, tpu_schedule
from pallas_kernels.static_analysis import CHIPS, KERNELS, Row

_KERNELS = flags.DEFINE_list("kernels", list(KERNELS), "kernels to compile")
_CHIPS = flags.DEFINE_list("chips", list(CHIPS), "chips to compile for")
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "131072"], "tokens a row, but 1 in decoding")
_BATCH = flags.DEFINE_integer("batch", 1, "rows", lower_bound=1)
_DECODE_BATCH = flags.DEFINE_integer("decode_batch", 64, "rows in decoding", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 64, "heads", lower_bound=1)
_DIMS = flags.DEFINE_list("head_dims", ["128"], "widths of a head")
_DTYPES = flags.DEFINE_list("dtypes", ["bfloat16"], "dtypes of q, k and v")
_JSON = flags.DEFINE_bool("json", False, "one JSON object a line in place of the table")


def main(_: list[str]) -> None:
    if not tpu_schedule.in_environment():
        static_analysis.run(*flags.FLAGS.flags_into_string().splitlines())
        return
    if not _JSON.value:
        for name in _CHIPS.value:
            print(f"{name}: {CHIPS[name]}, {CHIPS[name].rows:.2f} matrix rows a cycle and core")
        print(" ".join(f"{name:>{len(name)}}" for name in Row._fields))
    for kernel, chip, dim, dtype in itertools.product(
        _KERNELS.value, _CHIPS.value, map(int, _DIMS.value), _DTYPES.value
    ):
        decoding = kernel.endswith("decode")
        batch = _DECODE_BATCH.value if decoding else _BATCH.value
        for length in [1] if decoding else map(int, _LENGTHS.value):
            shape = (batch, length, _HEADS.value, dim, dtype)
            row = static_analysis.analyse(kernel, chip, *shape)
            print(json.dumps(row._asdict()) if _JSON.value else _line(row), flush=True)


def _line(row: Row) -> str:
    cells = (f"{x:.2f}" if isinstance(x, float) else str(x) for x in row)
    return " ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, Row._fields))


if __name__ == "__main__":
    app.run(main)
