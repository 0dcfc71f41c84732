"""Safetensors: 8 bytes of header length, a JSON header, raw little-endian arrays.

Read here rather than by the `safetensors` library, whose numpy side knows no float8 and maps whole
files into memory. Format: https://github.com/huggingface/safetensors#format
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from mmrl.errors import UserError, nearest
from mmrl.models.pretrained import fp8
from mmrl.models.pretrained.tensors import LazyTensor, TensorSpec, read_box

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# In the order in which the library lays them out, the last first.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "I16": np.int16,
        "U16": np.uint16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I32": np.int32,
        "U32": np.uint32,
        "F32": np.float32,
        "C64": np.complex64,
        "F64": np.float64,
        "I64": np.int64,
        "U64": np.uint64,
    }.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
OFFSETS = "data_offsets"
_MAX_HEADER_BYTES = 100_000_000  # the library's limit
_WRITE_BYTES = 2**26


def open_safetensors(
    path: Path, *, weight_block_size: tuple[int, int] = fp8.BLOCK
) -> dict[str, LazyTensor]:
    """The tensors of a .safetensors file or of a directory of them, by name; reads headers only.

    A directory holds model.safetensors, or shards with `model.safetensors.index.json`, or any
    .safetensors files. Float8 weights appear dequantised (`fp8.dequantised`), their scales not at
    all. Raises `UserError` with the file, the tensor, what was expected and what was found.
    """
    path = Path(path)
    index = path / INDEX
    if path.is_dir() and index.is_file() and not (path / SINGLE).is_file():
        weight_map = _weight_map(index)
        files = [path / name for name in sorted(set(weight_map.values()))]
    else:
        weight_map, files = {}, _files(path)
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{index}: names {file.name}, which is not there: fetch it too")
        for name, tensor in _open_file(file).items():
            if name in tensors:
                raise UserError(
                    f"{file}: tensor {name} is also in {tensors[name].file.name}: expected each"
                    " tensor in one file; remove the file that does not belong to the checkpoint"
                )
            tensors[name] = tensor
    for name, expected in weight_map.items():
        if name not in tensors or tensors[name].file.name != expected:
            found = f"it is in {tensors[name].file.name}" if name in tensors else "no file has it"
            raise UserError(
                f"{index}: expected tensor {name} in {expected}, but {found}."
                f"{nearest(name, tensors) if name not in tensors else ''}"
            )
    return fp8.dequantised(tensors, weight_block_size)


def _files(path: Path) -> list[Path]:
    """What to read at `path` where no index says it."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        beside = [str(other) for other in path.parent.glob("*")]
        raise UserError(f"no checkpoint {path}.{nearest(str(path), beside)}")
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(_nothing_to_read(path))
    for file in files:
        if shard := re.fullmatch(r"(.*-)(\d+)(-of-(\d+)\.safetensors)", file.name):
            for number in range(1, int(shard[4]) + 1):
                name = f"{shard[1]}{number:0{len(shard[2])}}{shard[3]}"
                if not (path / name).is_file():
                    raise UserError(f"{path}: holds {file.name} but not {name}: fetch it too")
    return files


def _nothing_to_read(path: Path) -> str:
    held = sorted(other.name for other in path.iterdir())
    listing = ", ".join(held[:12]) + (f" and {len(held) - 12} more" if len(held) > 12 else "")
    message = f"{path}: expected .safetensors files, found {listing or 'an empty directory'}."
    if any(name.endswith((".bin", ".pt", ".pth")) for name in held):
        message += (
            " Pickled weights (pytorch_model.bin) are not read, because reading them runs code."
            " Convert them: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    return message


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        if not all(isinstance(file, str) for file in weight_map.values()):
            raise TypeError("a file that is not a string")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{index}: expected {{"weight_map": {{tensor: file}}}}, found {error!r}'
        ) from None
    return weight_map


def _open_file(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one file as they are stored."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(
                f"{file}: expected a safetensors header, found a length of {length:,} bytes for it"
                f" in a file of {size:,}: it is truncated or of another format; fetch it again"
            )
        text = stream.read(length)
    tensors = {}
    end = 0
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
            dtype, shape, (begin, after) = (header[name][k] for k in ("dtype", "shape", OFFSETS))
            _check_entry(f"{file}: tensor {name}", dtype, shape, begin, after, end)
            end = after
            read = functools.partial(
                read_box, file, 8 + length + begin, tuple(shape), DTYPES[dtype]
            )
            tensors[name] = LazyTensor(name, file, tuple(shape), DTYPES[dtype], read)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file}: its header is not that of a safetensors file ({error!r}): fetch it again"
        ) from None
    if end != size - 8 - length:
        raise UserError(
            f"{file}: the header lists {end:,} bytes of tensors, the file holds"
            f" {size - 8 - length:,}: it is truncated or overwritten; fetch it again"
        )
    return tensors


def _check_entry(
    place: str, dtype: str, shape: list[int], begin: int, after: int, end: int
) -> None:
    if dtype not in DTYPES:
        raise UserError(f"{place}: dtype {dtype} is not supported; expected {', '.join(DTYPES)}")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise UserError(f"{place}: expected a shape of integers from 0, found {shape}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if after - begin != expected or begin != end:
        raise UserError(
            f"{place}: expected bytes {end:,} to {end + expected:,} for {dtype} of shape {shape},"
            f" found {begin:,} to {after:,}: the header is damaged; fetch the file again"
        )


def write_safetensors(
    directory: Path,
    specs: Sequence[TensorSpec],
    values: Iterable[np.ndarray],
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Writes `values`, one for each of `specs` in their order, into `directory`, which exists.

    Holds one value at a time. A shard is filled until the next tensor would pass
    `max_shard_bytes`; one shard is model.safetensors, more have an index, with Hugging Face's
    names. Within a file the layout is that of the `safetensors` library, byte for byte. Files of
    the same names are overwritten in place: a caller who wants the old ones to outlive a failure
    writes to a new directory. Raises `ValueError` for a value that differs from its spec.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"tensors of the same name among {sorted(names)}")
    shards = _shards(specs, max_shard_bytes)
    count = len(shards)
    files = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    if count == 1:
        files = [SINGLE]
    stream = iter(values)
    for file, shard in zip(files, shards):
        _write_file(directory / file, shard, stream)
    if next(stream, None) is not None:
        raise ValueError(f"more values than the {len(specs)} specs")
    if count > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in specs)},
            "weight_map": {spec.name: file for file, shard in zip(files, shards) for spec in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / INDEX).write_text(text, encoding="utf-8")


def _shards(specs: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def _write_file(file: Path, specs: Sequence[TensorSpec], values: Iterator[np.ndarray]) -> None:
    """Writes one file; the values come in the order of `specs`, which need not be the layout's."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in sorted(specs, key=lambda spec: (-_rank(spec), spec.name)):
        header[spec.name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            OFFSETS: [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            value = next(values, None)
            if value is None:
                raise ValueError(f"{file}: no value for tensor {spec.name} and those after it")
            if value.shape != tuple(spec.shape) or value.dtype != spec.dtype:
                raise ValueError(
                    f"{file}: tensor {spec.name}: expected {spec.dtype} of shape {spec.shape},"
                    f" found {value.dtype} of shape {value.shape}"
                )
            stream.seek(8 + len(text) + header[spec.name][OFFSETS][0])
            _write_array(stream, value)
            del value


def _write_array(stream: BinaryIO, value: np.ndarray) -> None:
    """Writes a piece at a time, so that a transposed view is never copied whole."""
    value = np.atleast_1d(value)
    rows = max(1, len(value) * _WRITE_BYTES // max(1, value.nbytes))
    for start in range(0, len(value), rows):
        piece = np.ascontiguousarray(value[start : start + rows])
        stream.write(piece.reshape(-1).view(np.uint8).data)


def _rank(spec: TensorSpec) -> int:
    return list(NAMES).index(spec.dtype)
