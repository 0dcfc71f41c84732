"""A tensor on disk: its shape is known, and an index reads the bytes of that index only.

Files are read by `preadv` into the result, not memory-mapped: mapped pages would count as resident
memory of the process, and a checkpoint is larger than that.
"""

import dataclasses
import math
import operator
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmrl.errors import UserError

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """`tensor[index]` is what numpy's index of the whole array would be, read from `file`.

    An index is made of integers, slices and `...`, as JAX's callbacks for sharded arrays give it.
    `read` takes one slice an axis, 0 <= start <= stop <= length and step 1, and returns a new array
    of `dtype`, which is the file's own or that of the dequantised values.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Slices], np.ndarray] = dataclasses.field(repr=False)

    def __getitem__(self, index: object) -> np.ndarray:
        bounds, within = split_index(index, self.shape)
        return self.read(bounds)[within]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor to write: its name, shape and numpy (or ml_dtypes) dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def split_index(index: object, shape: tuple[int, ...]) -> tuple[Slices, tuple[int | slice, ...]]:
    """(the smallest box of step 1 that holds `index`, the index of the wanted elements in it)."""
    given = index if isinstance(index, tuple) else (index,)
    if Ellipsis in given:
        before = given.index(Ellipsis)
        missing = len(shape) - (len(given) - 1)
        given = given[:before] + (slice(None),) * missing + given[before + 1 :]
    if len(given) > len(shape):
        raise IndexError(f"{len(given)} indices for a tensor of {len(shape)} axes")
    given += (slice(None),) * (len(shape) - len(given))
    bounds, within = zip(*map(_split_axis, given, shape)) if shape else ((), ())
    return bounds, within


def _split_axis(index: object, length: int) -> tuple[slice, int | slice]:
    if isinstance(index, slice):
        chosen = range(length)[index]
        if not chosen:
            return slice(0, 0), slice(None)
        first, last = sorted((chosen[0], chosen[-1]))
        return slice(first, last + 1), slice(None, None, chosen.step)
    position = range(length)[operator.index(index)]  # type: ignore[arg-type]
    return slice(position, position + 1), 0


def read_box(
    file: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, bounds: Slices
) -> np.ndarray:
    """The elements `bounds` of the row-major array of `shape` that begins at byte `offset`.

    Only their bytes are read: one run for each index of the axes before the last one that is cut.
    Raises `UserError` if the file ends before them.
    """
    box = np.empty([bound.stop - bound.start for bound in bounds], dtype)
    if not box.size:
        return box
    cut = [axis for axis, size in enumerate(box.shape) if size != shape[axis]]
    runs = box.reshape(-1, math.prod(box.shape[cut[-1] :])) if cut else box.reshape(1, -1)
    strides = [dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = offset + sum(bound.start * stride for bound, stride in zip(bounds, strides))
    outer = cut[-1] if cut else 0
    handle = os.open(file, os.O_RDONLY)
    try:
        for run, position in zip(runs, np.ndindex(box.shape[:outer])):
            start = first + sum(map(operator.mul, position, strides))
            _read_exactly(handle, memoryview(run.view(np.uint8)), start, file)  # type: ignore[arg-type]
    finally:
        os.close(handle)
    return box


def _read_exactly(handle: int, target: memoryview, offset: int, file: Path) -> None:
    while target:
        count = os.preadv(handle, [target], offset)  # at most 2 GiB a call
        if not count:
            raise UserError(
                f"{file}: ends at byte {offset:,}, {len(target):,} bytes before the end of a tensor"
                " that its header lists: the file is truncated; fetch it again"
            )
        target, offset = target[count:], offset + count
