"""How a checkpoint's tensor lies against the decoder's parameter, as a formula like einops'.

"(h d) m -> m h d": the tensor's rows are head after head, the parameter has an axis for each. The
sizes follow from the parameter's shape. The axis t has size 2; where the parameter lacks it, the
tensor holds two parameters and `select` says which: "e (t f) m -> e m f".
"""

import functools
import math
import re
from dataclasses import dataclass

import numpy as np

from mmrl.models.pretrained.tensors import LazyTensor

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Layout:
    """A formula from the tensor's axes to the parameter's."""

    formula: str
    select: int = 0

    @functools.cached_property
    def sides(self) -> tuple[Groups, Groups]:
        """The axes of the tensor and those of the parameter, each a group of letters."""
        tensor, parameter = (
            tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\w+", side))
            for side in self.formula.split("->")
        )
        return tensor, parameter

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The size of every letter, for a parameter of `shape`."""
        sizes = {"t": 2}
        for group, size in zip(self.sides[1], shape, strict=True):
            known = math.prod(sizes.get(letter, 1) for letter in group)
            sizes |= {letter: size // known for letter in group if letter not in sizes}
        return sizes

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that holds a parameter of `shape`."""
        sizes = self.sizes(shape)
        return tuple(math.prod(sizes[letter] for letter in group) for group in self.sides[0])

    def read(
        self, tensor: LazyTensor, shape: tuple[int, ...], index: tuple[slice, ...]
    ) -> np.ndarray:
        """`parameter[index]` of a parameter of `shape`, its index of whole or contiguous slices.

        Reads the rows and columns of the tensor that hold it and, where an axis of the tensor is a
        group whose parts are cut, those between them.
        """
        left, right = self.sides
        sizes = self.sizes(shape)
        bounds = {letter: (0, size) for letter, size in sizes.items()}
        rest = []
        for group, size, part in zip(right, shape, index, strict=True):
            start, stop, _ = part.indices(size)
            whole = len(group) > 1
            rest.append(slice(start, stop) if whole else slice(None))
            if not whole:
                bounds[group[0]] = (start, stop)
        letters = [letter for group in right for letter in group]
        if "t" not in letters:
            bounds["t"] = (self.select, self.select + 1)
        box, lengths, within = zip(*(_cut(group, bounds, sizes) for group in left))
        block = tensor[box].reshape([n for axis in lengths for n in axis])
        block = block[tuple(part for axis in within for part in axis)]
        order = [letter for group in left for letter in group]
        if "t" in order and "t" not in letters:
            block = block.squeeze(order.index("t"))
            order.remove("t")
        block = block.transpose([order.index(letter) for letter in letters])
        grouped = []
        for group in right:
            grouped.append(math.prod(bounds[letter][1] - bounds[letter][0] for letter in group))
        return block.reshape(grouped)[tuple(rest)]

    def write(self, value: np.ndarray) -> np.ndarray:
        """The tensor of a whole parameter, a view where numpy can give one."""
        left, right = self.sides
        sizes = self.sizes(value.shape)
        letters = [letter for group in right for letter in group]
        value = value.reshape([sizes[letter] for letter in letters])
        value = value.transpose([letters.index(letter) for group in left for letter in group])
        return value.reshape([math.prod(sizes[letter] for letter in group) for group in left])


def _cut(
    group: tuple[str, ...], bounds: dict[str, tuple[int, int]], sizes: dict[str, int]
) -> tuple[slice, list[int], list[slice]]:
    """The contiguous rows of an axis that hold the bounds of its letters.

    Returns them, the lengths of the letters among them, and the index of the bounds within those.
    A letter after one that spans several rows is read whole.
    """
    start, stop = 0, 1
    lengths, within = [], []
    for letter in group:
        size, (low, high) = sizes[letter], bounds[letter]
        if stop - start == 1:
            start, stop = start * size + low, start * size + high
            lengths.append(high - low)
            within.append(slice(None))
        else:
            start, stop = start * size, stop * size
            lengths.append(size)
            within.append(slice(low, high))
    return slice(start, stop), lengths, within
