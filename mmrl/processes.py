"""What the processes of a job tell each other, as values on the host.

Each process has its own `share` of a batch's rows: it draws and tokenizes these prompts, judges
their responses, and tells the others the results. All processes call these functions in the same
order, from one thread each. A process alone has everything already, and nothing is compiled.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mmrl.sharding import by_process


def share(count: int) -> range:
    """Which of `count` rows are this process's: equal consecutive parts, the last may be less."""
    size = -(-count // jax.process_count())
    start = min(jax.process_index() * size, count)
    return range(start, min(start + size, count))


def own_rows(tree: Any) -> Any:
    """This process's `share` of the leading axis of global arrays, as numpy arrays.

    From device to device, and only these rows reach the host.
    """

    def one(x: jax.Array) -> np.ndarray:
        own = share(len(x))
        if _on_this_host(x):
            return np.asarray(x)[own.start : own.stop]
        padding = -len(x) % jax.process_count()
        rows = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) if padding else x
        moved = jax.device_put(rows, by_process())
        return np.asarray(moved.addressable_data(0))[: len(own)]

    return jax.tree.map(one, tree)


def everywhere(tree: Any) -> Any:
    """Global arrays, whole, as numpy arrays on every process; for small ones."""

    def one(x: jax.Array) -> np.ndarray:
        return (
            np.asarray(x) if _on_this_host(x) else multihost_utils.process_allgather(x, tiled=True)
        )

    return jax.tree.map(one, tree)


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes one after another, on every process; their numbers may differ."""
    if jax.process_count() == 1:
        return rows
    counts = exchange(len(rows))
    padded = np.zeros((max(counts), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    parts = multihost_utils.process_allgather(padded)
    return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])


def exchange(value: Any) -> list[Any]:
    """A JSON value of every process, in their order, on every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    # Of few different lengths, because each is a program.
    room = 1 << int(sizes.max()).bit_length()
    texts = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def any_process(flag: bool) -> bool:
    """Whether the flag is set on one process at least; the same answer on all."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


def _on_this_host(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
