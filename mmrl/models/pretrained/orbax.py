"""mmrl's own directories: config.json with a decoder's config, checkpoints/STEP by Orbax.

Run directories have this form. A checkpoint's state has the trained parameters in `params` and with
LoRA the others in `frozen`; a converted model has all in `params`, at step 0.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from mmrl.annotations import convert
from mmrl.errors import UserError
from mmrl.models.config import DecoderConfig
from mmrl.models.decoder import Decoder
from mmrl.sharding import placement


def is_run(path: Path) -> bool:
    """Whether `path` is a directory of this form."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def load_run(
    path: Path, mesh: Mesh | None, dtype: str | None = None, param_dtype: str | None = None
) -> Decoder:
    """The decoder of the last checkpoint of a run; its dtypes by default are the run's.

    Raises `UserError` where there is no checkpoint or it does not fit config.json.
    """
    config = _config(path, dtype, param_dtype)
    # Orbax renames a checkpoint to its number when it is whole.
    steps = [int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdecimal()]
    if not steps:
        raise UserError(f"{path}/checkpoints holds no checkpoint yet")
    place = (path / "checkpoints" / str(max(steps)) / "state").absolute()
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    target = _parts(config, jax.tree.map(_shape, abstract, placement(abstract, mesh)))
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            _check(checkpointer.metadata(place).item_metadata.tree, target, place)
            restored = checkpointer.restore(place, args=args)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from error
    return nnx.merge(graphdef, *restored.values())


def _check(held: Any, target: dict[str, nnx.State], place: Path) -> None:
    """Raises `UserError` for the first array that is not held, or in another shape."""
    for part, state in target.items():
        for path, leaf in nnx.to_flat_state(state):
            found = held
            for name in (part, *map(str, path), "value"):
                found = found.get(name) if isinstance(found, dict) else None
            name, expected = ".".join(map(str, path)), leaf.get_value().shape
            if found is None or tuple(found.shape) != expected:
                what = "none" if found is None else f"shape {tuple(found.shape)}"
                raise UserError(
                    f"{place}: {name}: expected shape {expected} by the run's config.json, found "
                    f"{what}"
                )


def _config(path: Path, dtype: str | None, param_dtype: str | None) -> DecoderConfig:
    file = path / "config.json"
    try:
        config = convert(DecoderConfig, json.loads(file.read_bytes())["model"], "model", plain=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: expected the config of a run: {error}") from error
    params = param_dtype or config.param_dtype
    return dataclasses.replace(config, param_dtype=params, dtype=dtype or config.dtype)


def _shape(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _parts(config: DecoderConfig, state: nnx.State) -> dict[str, nnx.State]:
    """The parts of a run's state that the parameters are in."""
    if config.lora is None:
        return {"params": state}
    adapters, base = nnx.split_state(state, nnx.LoRAParam, ...)
    return {"params": adapters, "frozen": base}


def save_orbax(model: Decoder, directory: Path) -> None:
    """Writes config.json and the parameters as checkpoint 0 into `directory`, which exists."""
    text = json.dumps({"model": dataclasses.asdict(model.config)}, indent=2)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    place = (directory / "checkpoints").absolute()
    with ocp.CheckpointManager(place) as manager:
        state = _parts(model.config, nnx.state(model))
        manager.save(0, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
