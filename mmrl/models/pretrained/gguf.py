"""GGUF: metadata and tensors, quantised by blocks along the last axis, in one file.

Types and dequantisation are those of the `gguf` package.
"""

import dataclasses
import functools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from mmrl.errors import UserError
from mmrl.gguf_header import read_header
from mmrl.models.pretrained.tensors import LazyTensor, Slices, read_box

# Types that are not quantised: the array is read as it is.
_PLAIN: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F64": np.float64,
        "I8": np.int8,
        "I16": np.int16,
        "I32": np.int32,
        "I64": np.int64,
    }.items()
}


@dataclasses.dataclass(frozen=True)
class GGUF:
    """`metadata` by key, arrays as lists; `tensors` by the file's names, shapes with rows first.

    A quantised tensor reads as float32, others as they are stored.
    """

    metadata: dict[str, Any]
    tensors: dict[str, LazyTensor]


def open_gguf(path: Path) -> GGUF:
    """Reads the header of a GGUF file, little-endian, version 2 or 3.

    Raises `UserError` with the file, the tensor, what was expected and what was found: for another
    format or version, a truncated file, and tensor types that the `gguf` package cannot dequantise.
    """
    path = Path(path)
    package = _package()
    metadata, infos = read_header(path)
    tensors = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise UserError(f"{path}: tensor {name} is there twice")
        tensors[name] = _tensor(package, path, name, shape, kind, offset)
    return GGUF(metadata, tensors)


def _package() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise UserError("GGUF files need the gguf package: pip install 'mmrl[hf]'") from error
    return gguf


def _tensor(
    package: ModuleType, path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> LazyTensor:
    place = f"{path}: tensor {name}"
    if not _supported(package, kind):
        kinds = package.GGMLQuantizationType
        found = kinds(kind).name if kind in list(kinds) else f"number {kind}"
        supported = ", ".join(other.name for other in kinds if _supported(package, other))
        raise UserError(f"{place}: type {found} is not supported; expected one of {supported}")
    quantisation = package.GGMLQuantizationType(kind)
    plain = _PLAIN.get(quantisation.name)
    length, nbytes = package.GGML_QUANT_SIZES[quantisation]
    if math.prod(shape[-1:]) % length:
        raise UserError(
            f"{place}: expected rows of a multiple of {length} elements for {quantisation.name},"
            f" found shape {shape}"
        )
    end, size = offset + math.prod(shape) // length * nbytes, path.stat().st_size
    if end > size:
        raise UserError(
            f"{place}: expected to end at byte {end:,}, but the file has {size:,}: it is truncated;"
            " fetch it again"
        )
    if plain is not None:
        read = functools.partial(read_box, path, offset, shape, plain)
        return LazyTensor(name, path, shape, plain, read)
    read = functools.partial(_read_quantised, package, path, offset, shape, quantisation)
    return LazyTensor(name, path, shape, np.dtype(np.float32), read)


@functools.cache
def _supported(package: ModuleType, kind: int) -> bool:
    """Whether the array is plain or the package dequantises its type."""
    if kind not in list(package.GGMLQuantizationType):
        return False
    quantisation = package.GGMLQuantizationType(kind)
    if quantisation.name in _PLAIN:
        return True
    block = np.zeros((1, package.GGML_QUANT_SIZES[quantisation][1]), np.uint8)
    try:
        package.quants.dequantize(block, quantisation)
    except NotImplementedError:
        return False
    return True


def _read_quantised(
    package: ModuleType,
    path: Path,
    offset: int,
    shape: tuple[int, ...],
    quantisation: Any,
    bounds: Slices,
) -> np.ndarray:
    length, nbytes = package.GGML_QUANT_SIZES[quantisation]
    *rows, columns = bounds
    first, last = columns.start // length, -(-columns.stop // length)
    stored = (*shape[:-1], shape[-1] // length * nbytes)
    box = (*rows, slice(first * nbytes, last * nbytes))
    blocks = read_box(path, offset, stored, np.dtype(np.uint8), box)
    if not blocks.size:
        return np.empty([bound.stop - bound.start for bound in bounds], np.float32)
    values = package.quants.dequantize(blocks, quantisation)
    return values[..., columns.start - first * length : columns.stop - first * length]
