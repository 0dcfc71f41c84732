"""The run state on disk: parameters, optimizer, step, random key and data iterators, by Orbax.

Orbax writes each checkpoint to a temporary folder and renames it when it is whole, so a run killed
at any moment finds its last complete one. A run with LoRA saves its frozen base each
time, so that a checkpoint is a whole model and needs no other file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmrl.errors import UserError


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint every `interval` steps, written in the background; the newest `keep` stay."""

    interval: int = 50
    keep: int = 2

    def __post_init__(self):
        if self.interval < 1 or self.keep < 1:
            raise ValueError(f"interval and keep must be at least 1, got {self}")


def open_checkpoints(workdir: Path, config: CheckpointConfig) -> ocp.CheckpointManager:
    """The checkpoints of a run, `workdir/checkpoints/STEP`."""
    options = ocp.CheckpointManagerOptions(max_to_keep=config.keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager((workdir / "checkpoints").resolve(), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    host: dict[str, Any],
    carried: dict[str, Any] | None = None,
) -> None:
    """Starts to write `state`, a tree of arrays, and `host`, JSON values (iterator positions).

    `carried` are numpy arrays whose tree and shapes differ from step to step.
    """
    items: dict[str, Any] = dict(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
    if carried:
        items["carried"] = ocp.args.StandardSave(carried)
    manager.save(step, args=ocp.args.Composite(**items), force=True)


def restore(
    manager: ocp.CheckpointManager, step: int, state: Any
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Checkpoint `step` as (state, host values, carried arrays).

    `state` gives the tree, shapes, dtypes and shardings to restore to; what another number of
    processes or another mesh wrote is laid out anew. Raises UserError where tree or shapes differ.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    items: dict[str, Any] = dict(
        state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore()
    )
    if (manager.directory / str(step) / "carried").exists():
        items["carried"] = ocp.args.StandardRestore()
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{manager.directory}/{step} does not fit this config ({str(error).splitlines()[0]}); "
            "continue with the config.json beside it, or choose another --workdir"
        ) from error
    return restored["state"], restored["host"], restored.get("carried") or {}
