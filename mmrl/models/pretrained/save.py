"""Hugging Face directories from mmrl's parameters, tensor by tensor.

The directory is written beside its place and renamed when it is whole, so that a save that fails
leaves what was there before.
"""

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from mmrl.errors import UserError
from mmrl.models.attention import layer_slopes
from mmrl.models.config import DecoderConfig
from mmrl.models.lora import merge_adapters
from mmrl.models.pretrained.hf_config import config_to_hf
from mmrl.models.pretrained.matching import StoredDtype
from mmrl.models.pretrained.names import FLOAT32, LAYER, Parameter, parameters, written_spelling
from mmrl.models.pretrained.safetensors import write_safetensors
from mmrl.models.pretrained.tensors import TensorSpec

if TYPE_CHECKING:
    from mmrl.text import Tokenizer

# (parameter, row of its layers, expert) -> the values in the decoder's layout.
Reader = Callable[[Parameter, int, int | None], np.ndarray]
BLOCK_SIZE = 256  # of transformers' `minimax`, whose decay tables have that many rows


def save_hf(
    params: nnx.State,
    config: DecoderConfig,
    directory: str | Path,
    tokenizer: "Tokenizer | None" = None,
    dtype: StoredDtype | None = None,
) -> None:
    """Writes a directory that transformers, vLLM and SGLang load.

    Adapters are merged. Weights are stored in `dtype`, by default the config's `param_dtype`; the
    routers of MiniMax models stay in float32, as in its releases. One tensor is in host memory at
    a time. With several processes all must call it, and the first one writes.
    Raises `UserError` for a decoder that no Hugging Face architecture is, and for a directory that
    holds anything but a model.
    """
    if config.lora is not None:
        params = merge_adapters(params, config.lora)
    values = dict(nnx.to_flat_state(params))

    def read(p: Parameter, row: int, expert: int | None) -> np.ndarray:
        value = values[p.path].get_value()
        for index in () if p.layers is None else (row,) if expert is None else (row, expert):
            value = _take(value, index)
        return on_host(value)

    export(config, read, Path(directory), tokenizer, dtype)


def on_host(value: jax.Array) -> np.ndarray:
    """The whole array, gathered from all processes where they share it."""
    if value.is_fully_addressable:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


@jax.jit
def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def export(
    config: DecoderConfig,
    read: Reader,
    directory: Path,
    tokenizer: "Tokenizer | None",
    dtype: StoredDtype | None = None,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """`save_hf` with parameters from `read`; `fields` go into config.json as well."""
    dtype = dtype or config.param_dtype
    found = config_to_hf(config)
    pieces = list(_pieces(config, found["model_type"], read, dtype))
    if found["model_type"] == "minimax":
        found["block_size"] = BLOCK_SIZE
        pieces += _buffers(config)
    pieces.sort(key=lambda piece: piece.layer)
    values = (piece.value() for piece in pieces)
    if jax.process_index() != 0:
        for _ in values:
            pass
        return
    found |= {"torch_dtype": dtype} | _token_ids(tokenizer) | dict(fields or {})
    with replacing(directory) as partial:
        write_safetensors(partial, [piece.spec for piece in pieces], values)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)
        generation = partial / "generation_config.json"
        if not generation.is_file():
            _write_json(generation, _token_ids(tokenizer))
        _write_json(partial / "config.json", found)


@dataclass(frozen=True)
class _Piece:
    """A tensor to write: its layer (-1 before all, the depth after), and how to get its value."""

    layer: int
    spec: TensorSpec
    value: Callable[[], np.ndarray]


def _pieces(config: DecoderConfig, model_type: str, read: Reader, dtype: str) -> Iterator[_Piece]:
    for p in parameters(config):
        spelling = written_spelling(p.key, model_type)
        keep = p.key in FLOAT32 and model_type.startswith("minimax")
        stored = np.dtype(np.float32) if keep else np.dtype(jnp.dtype(dtype))
        for row, layer in enumerate(p.layers or (None,)):
            for expert, name in enumerate(spelling.names(p, layer)):
                spec = TensorSpec(name, spelling.shape(p), stored)

                def value(p=p, row=row, expert=expert, spelling=spelling, spec=spec):
                    part = read(p, row, expert if spelling.per_expert else None)
                    return _cast(spelling.layout.write(part), spec)

                place = layer if layer is not None else -1 if p.key == "embedding" else 10**6
                yield _Piece(place, spec, value)


def _cast(value: np.ndarray, spec: TensorSpec) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(spec.dtype, copy=False)
    if spec.dtype == np.float16 and not np.isfinite(cast).all() and np.isfinite(value).all():
        raise UserError(
            f"tensor {spec.name}: holds {np.abs(value).max():.4g}, which float16 cannot; "
            "choose bfloat16 or float32"
        )
    return cast


def _buffers(config: DecoderConfig) -> Iterator[_Piece]:
    """The decay tables that transformers' `minimax` has as persistent buffers in its checkpoints.

    Without them it would compute the same values, and report missing keys.
    """
    rates = np.asarray(layer_slopes(config), np.float32)
    for layer, kind in enumerate(config.layer_pattern * config.num_groups):
        if kind == "softmax":
            continue
        for name, shape in (
            ("slope_rate", (config.num_heads, 1, 1)),
            ("query_decay", (config.num_heads, BLOCK_SIZE, 1)),
            ("key_decay", (config.num_heads, BLOCK_SIZE, 1)),
            ("diagonal_decay", (1, config.num_heads, BLOCK_SIZE, BLOCK_SIZE)),
        ):
            full = f"{LAYER.format(i=layer)}self_attn.{name}"
            spec = TensorSpec(full, shape, np.dtype(np.float32))
            yield _Piece(layer, spec, functools.partial(_decay, name, rates[layer]))


def _decay(name: str, rate: np.ndarray) -> np.ndarray:
    """exp(-rate · steps), 0 for steps that would go back in time; rate [H]."""
    rate, step = rate[:, None, None], np.arange(1, BLOCK_SIZE + 1, dtype=np.float32)[:, None]
    if name == "slope_rate":
        return rate
    if name == "query_decay":
        return np.exp(-rate * step)
    if name == "key_decay":
        return np.exp(-rate * (BLOCK_SIZE - step))
    steps = step - step.T
    return np.where(steps >= 0, np.exp(-rate * np.maximum(steps, 0)), np.float32(0))[None]


def _token_ids(tokenizer: "Tokenizer | None") -> dict[str, Any]:
    """Special ids for config.json; null where unknown, which is not the architecture's default."""
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        ids |= {"eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}
    return ids


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """All files of a pretrained tokenizer, or tokenizer.json of mmrl's own."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(directory)
    else:
        tokenizer.save(directory / "tokenizer.json")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A new directory that takes the place of `directory` at the end, or vanishes on an error.

    Raises `UserError` if `directory` is there and holds anything but an exported model.
    """
    directory = directory.absolute()
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if directory.exists():
            directory.rename(old)
        try:
            partial.rename(directory)
        except OSError:
            old.rename(directory)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose a directory to save to")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    names = {path.name for path in directory.iterdir()}
    weights = any(name.endswith(".safetensors") for name in names)
    converted = {"config.json", "checkpoints"} <= names and "metrics.jsonl" not in names
    exported = weights and {"config.json", "adapter_config.json"} & names
    if not exported and not converted:
        raise UserError(
            f"{directory} holds {sorted(names)[0]} and is no exported model: choose another "
            "directory, or empty it"
        )
