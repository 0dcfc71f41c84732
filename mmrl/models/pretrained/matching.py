"""The tensors of a checkpoint matched with the parameters of a decoder, checked before any is read.

Every mistake is one `UserError` with the file, the tensor, what was expected and what was found.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from mmrl.errors import UserError, nearest
from mmrl.models.pretrained.names import FLOAT32, Parameter, Spelling
from mmrl.models.pretrained.tensors import LazyTensor

StoredDtype = Literal["float32", "bfloat16", "float16"]
Table = Mapping[str, Sequence[Spelling]]


@dataclass(frozen=True)
class Stored:
    """Where the values of a parameter are: for each of its layers the tensors and their spelling.

    A layer has one tensor, or one for each expert.
    """

    parameter: Parameter
    layers: tuple[tuple[tuple[LazyTensor, ...], Spelling], ...]

    @property
    def dtypes(self) -> set[np.dtype]:
        return {tensor.dtype for tensors, _ in self.layers for tensor in tensors}

    def read(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        """`parameter[index]`, tensor by tensor: beside the result, one tensor's part is in memory.

        `index` has whole or contiguous slices, the layers' axis first where there is one.
        """
        p = self.parameter
        shape = p.shape if p.layers is None else (len(p.layers), *p.shape)
        ranges = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        out = np.empty([len(r) for r in ranges], dtype)
        if p.layers is None:
            out[...] = self.read_layer(0, index)
            return out
        for row, layer in enumerate(ranges[0]):
            if p.experts is None:
                out[row] = self.read_layer(layer, index[1:])
                continue
            for place, expert in enumerate(ranges[1]):
                out[row, place] = self.read_layer(layer, index[2:], expert)
        return out

    def read_layer(
        self, layer: int, index: tuple[slice, ...], expert: int | None = None
    ) -> np.ndarray:
        """The part of one layer, or of one of its experts, in the file's dtype."""
        tensors, spelling = self.layers[layer]
        shape = self.parameter.shape
        if expert is None:
            return spelling.layout.read(tensors[0], shape, index)
        if spelling.per_expert:
            return spelling.layout.read(tensors[expert], shape[1:], index)
        return spelling.layout.read(tensors[0], shape, (slice(expert, expert + 1), *index))[0]


def match(
    wanted: Sequence[Parameter],
    tensors: Mapping[str, LazyTensor],
    table: Table,
    where: Path,
    ignored: Sequence[str] = (),
) -> tuple[Stored, ...]:
    """The tensors of every parameter that is wanted, by the spellings of `table`.

    `ignored` are patterns of names that need not be used; any other tensor that is left over is a
    `UserError`, as are a missing one, a wrong shape and integers.
    """
    used: set[str] = set()
    found, missing = [], []
    for p in wanted:
        layers = []
        for layer in p.layers or (None,):
            spelling = _spelling(table[p.key], tensors, layer)
            names = spelling.names(p, layer)
            missing += [(name, spelling.shape(p)) for name in names if name not in tensors]
            used.update(names)
            layers.append((tuple(tensors[n] for n in names if n in tensors), spelling))
        found.append(Stored(p, tuple(layers)))
    unused = [name for name in tensors if name not in used]
    unused = [name for name in unused if not any(re.fullmatch(x, name) for x in ignored)]
    if missing:
        name, shape = missing[0]
        raise UserError(
            f"{where}: expected a tensor {name} of shape {shape}, found none of that name"
            f"{_more(missing, 'missing')}.{nearest(name, unused)}"
        )
    if unused:
        raise UserError(
            f"{tensors[unused[0]].file}: tensor {unused[0]} of shape {tensors[unused[0]].shape} is "
            f"unexpected: this architecture has no such weight{_more(unused, 'unexpected')}"
        )
    for stored in found:
        for held, spelling in stored.layers:
            for tensor in held:
                _check(tensor, spelling.shape(stored.parameter))
    return tuple(found)


def stored_dtype(matched: Sequence[Stored]) -> StoredDtype:
    """The dtype of a checkpoint: that of all its weights if they agree, or else float32.

    The router's do not count: MiniMax stores them in float32 among bfloat16.
    """
    dtypes = {d for stored in matched if stored.parameter.key not in FLOAT32 for d in stored.dtypes}
    if dtypes == {np.dtype(jnp.bfloat16)}:
        return "bfloat16"
    return "float16" if dtypes == {np.dtype(np.float16)} else "float32"


def _spelling(
    spellings: Sequence[Spelling], tensors: Mapping[str, LazyTensor], layer: int | None
) -> Spelling:
    """The first spelling that is there, or else the first."""
    there = (s for s in spellings if s.name.format(i=layer, e=0) in tensors)
    return next(there, spellings[0])


def _more(names: Sequence, what: str) -> str:
    return f" ({len(names)} tensors are {what})" if len(names) > 1 else ""


def _check(tensor: LazyTensor, expected: tuple[int, ...]) -> None:
    place = f"{tensor.file}: tensor {tensor.name}"
    if tensor.shape != expected:
        raise UserError(
            f"{place}: expected shape {expected}, which the model's config asks for, found "
            f"{tensor.shape}"
        )
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{place}: expected floating point numbers, found {tensor.dtype}")
