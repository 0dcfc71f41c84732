"""Block-quantised float8 weights, dequantised as they are read.

A float8_e4m3fn weight `X` comes with `X_scale_inv`, float32, one factor a block:
value = float32(X) * scale_inv[row // block, column // block]. The name is DeepSeek-V3's; that
MiniMax-M2's released files use it is UNCONFIRMED. Stacked weights have axes in front.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmrl.errors import UserError
from mmrl.models.pretrained.tensors import LazyTensor, Slices

BLOCK = (128, 128)
SUFFIX = "_scale_inv"
_FLOAT8 = {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
# What the names of other quantisations end in: GPTQ and AWQ, compressed-tensors, bitsandbytes.
_OTHERS = ("qweight", "qzeros", "weight_packed", "weight_scale", "SCB", "absmax", "quant_map")


def block_size(config_json: Mapping[str, Any], where: Path) -> tuple[int, int]:
    """(rows, columns) of a block, which a config.json may set; `where` is the file errors name."""
    size = (config_json.get("quantization_config") or {}).get("weight_block_size") or BLOCK
    whole = isinstance(size, list | tuple) and all(type(n) is int and n > 0 for n in size)
    if not whole or len(size) != 2:
        raise UserError(
            f"{where}: quantization_config.weight_block_size: expected two positive integers,"
            f" found {size!r}"
        )
    return size[0], size[1]


def dequantised(
    tensors: Mapping[str, LazyTensor], block: tuple[int, int] = BLOCK
) -> dict[str, LazyTensor]:
    """`tensors` with each float8 weight in bfloat16 (computed in float32), without the scales.

    Raises `UserError` for a weight without a scale, a scale without a weight, a scale of another
    shape or dtype than `block` asks for, and for quantisations of other kinds.
    """
    result = {}
    for name, tensor in tensors.items():
        place = f"{tensor.file}: tensor {name}"
        if name.endswith(_OTHERS) or (
            name.endswith(".weight") and np.issubdtype(tensor.dtype, np.integer)
        ):
            raise UserError(
                f"{place} ({tensor.dtype}): this quantisation is not supported; expected float32,"
                f" bfloat16 or float16 weights, or float8_e4m3fn with {SUFFIX}"
            )
        if name.endswith(SUFFIX):
            if name.removesuffix(SUFFIX) not in tensors:
                raise UserError(f"{place}: the scale of a weight that is not there")
        elif tensor.dtype in _FLOAT8:
            result[name] = _dequantised(tensor, tensors.get(name + SUFFIX), block, place)
        elif name + SUFFIX in tensors:
            raise UserError(
                f"{place}: has a {SUFFIX}; expected float8_e4m3fn, found {tensor.dtype}"
            )
        else:
            result[name] = tensor
    return result


def _dequantised(
    weight: LazyTensor, scale: LazyTensor | None, block: tuple[int, int], place: str
) -> LazyTensor:
    if weight.dtype != ml_dtypes.float8_e4m3fn or len(weight.shape) < 2:
        raise UserError(
            f"{place}: expected a float8_e4m3fn matrix, found {weight.dtype} of shape"
            f" {weight.shape}: this quantisation is not supported"
        )
    if scale is None:
        raise UserError(f"{place}: is {weight.dtype}; expected its scale {weight.name}{SUFFIX}")
    sizes = (1,) * (len(weight.shape) - 2) + block
    expected = tuple(-(-length // size) for length, size in zip(weight.shape, sizes))
    if scale.shape != expected or scale.dtype != np.float32:
        raise UserError(
            f"{scale.file}: tensor {scale.name}: expected float32 of shape {expected}, one factor a"
            f" block of {block[0]} x {block[1]} of the weight of shape {weight.shape}; found"
            f" {scale.dtype} of shape {scale.shape}"
        )
    read = functools.partial(_read, weight, scale, sizes)
    return LazyTensor(weight.name, weight.file, weight.shape, np.dtype(ml_dtypes.bfloat16), read)


def _read(
    weight: LazyTensor, scale: LazyTensor, sizes: tuple[int, ...], bounds: Slices
) -> np.ndarray:
    covering = tuple(
        slice(bound.start // size, -(-bound.stop // size)) for bound, size in zip(bounds, sizes)
    )
    factors = scale.read(covering)
    for axis, (bound, size) in enumerate(zip(bounds, sizes)):
        if size > 1:
            blocks = np.arange(bound.start, bound.stop) // size - covering[axis].start
            factors = np.take(factors, blocks, axis)
    values = weight.read(bounds).astype(np.float32)
    values *= factors
    return values.astype(ml_dtypes.bfloat16)
