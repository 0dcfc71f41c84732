"""The header of a GGUF file: its metadata, and where its tensors are.

It is parsed here: `gguf.GGUFReader` makes a numpy array of every token of the vocabulary, which
takes seconds. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmrl.errors import UserError, nearest

_VERSIONS = (2, 3)
_SCALARS: dict[int, np.dtype] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """Shape with rows first, the number of its type in ggml, and its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read_header(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    """Metadata by key, arrays as lists, and tensors of a little-endian file of version 2 or 3.

    Raises `UserError` with the file for another format or version and for a damaged header.
    """
    path = Path(path)
    if not path.is_file():
        beside = [str(other) for other in path.parent.glob("*.gguf")]
        raise UserError(f"no GGUF file {path}.{nearest(str(path), beside)}")
    with open(path, "rb") as stream:
        header = _Header(path, stream, path.stat().st_size)
        tensor_count, key_count = header.start()
        metadata = {}
        for _ in range(key_count):
            key = header.string()
            metadata[key] = header.value(int(header.scalar(4)))
        infos = [header.tensor_info() for _ in range(tensor_count)]
        position = stream.tell()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise UserError(f"{path}: expected a positive general.alignment, found {alignment!r}")
    data = -(-position // alignment) * alignment
    return metadata, [info._replace(offset=data + info.offset) for info in infos]


@dataclass
class _Header:
    """A position in the header of `path`, a file of `size` bytes; each method reads on from it."""

    path: Path
    stream: BinaryIO
    size: int

    def take(self, count: int) -> bytes:
        start = self.stream.tell()
        if start + count > self.size:
            raise UserError(
                f"{self.path}: the header asks for {count:,} bytes at byte {start:,} of"
                f" {self.size:,}: the file is truncated or damaged; fetch it again"
            )
        return self.stream.read(count)

    def start(self) -> tuple[int, int]:
        """(number of tensors, number of keys)."""
        magic = self.stream.read(4)
        if magic != b"GGUF":
            raise UserError(f"{self.path}: expected a GGUF file, found one that begins {magic!r}")
        version = self.scalar(4)
        if version not in _VERSIONS:
            found = "a big-endian file" if version % 2**16 == 0 else f"version {version}"
            raise UserError(f"{self.path}: expected GGUF version 2 or 3, found {found}")
        return self.scalar(10), self.scalar(10)

    def scalar(self, kind: int) -> Any:
        return np.frombuffer(self.take(_SCALARS[kind].itemsize), _SCALARS[kind])[0].item()

    def string(self) -> str:
        length = int.from_bytes(self.take(8), "little")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: a string in the header is not UTF-8: {error}") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, length = self.scalar(4), self.scalar(10)
            if item in _SCALARS:
                dtype = _SCALARS[item]
                return np.frombuffer(self.take(length * dtype.itemsize), dtype).tolist()
            return [self.value(item) for _ in range(length)]
        if kind not in _SCALARS:
            raise UserError(
                f"{self.path}: unknown type {kind} of a metadata value before byte"
                f" {self.stream.tell():,}: the file is damaged or of a later format"
            )
        return self.scalar(kind)

    def tensor_info(self) -> TensorInfo:
        """The next tensor; its offset counts from the start of the data."""
        name = self.string()
        shape = tuple(self.scalar(10) for _ in range(self.scalar(4)))[::-1]
        return TensorInfo(name, shape, self.scalar(4), self.scalar(10))
