"""Models from disk: Hugging Face directories, GGUF files and mmrl's run directories.

Each parameter goes from the file to its shards: a process reads only what its own devices hold, and
the host has one shard of one parameter in memory at a time, with the part of one tensor being read.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmrl.errors import UserError, nearest
from mmrl.models.config import DecoderConfig
from mmrl.models.decoder import Decoder
from mmrl.models.pretrained import fp8
from mmrl.models.pretrained.gguf import open_gguf
from mmrl.models.pretrained.gguf_models import FACTORS, config_from_gguf, gguf_table
from mmrl.models.pretrained.hf_config import config_from_hf
from mmrl.models.pretrained.matching import Stored, StoredDtype, match, stored_dtype
from mmrl.models.pretrained.names import IGNORED, TABLE, parameters
from mmrl.models.pretrained.orbax import is_run, load_run
from mmrl.models.pretrained.safetensors import open_safetensors
from mmrl.sharding import placement

if TYPE_CHECKING:
    from mmrl.text import Tokenizer

Dtype = Literal["float32", "bfloat16"]
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of Hugging Face or llama.cpp, checked, with none of its weights read.

    `dtype` is what the weights are stored in; the config has the nearest that a decoder can hold.
    `fields` is config.json, empty for GGUF. `has_tokenizer` says whether `mmrl.text` finds one.
    """

    path: Path
    config: DecoderConfig
    stored: tuple[Stored, ...]
    dtype: StoredDtype
    fields: dict[str, Any]
    has_tokenizer: bool

    def tokenizer(self) -> "Tokenizer | None":
        return read_tokenizer(self.path) if self.has_tokenizer else None


def load(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    param_dtype: Dtype | None = None,
) -> "tuple[Decoder, Tokenizer | None]":
    """The model at `path`, and its tokenizer if it has one.

    Args:
      path: a Hugging Face directory, a .gguf file, or an mmrl run directory, whose last checkpoint
        is read.
      mesh: where the parameters go, by `mmrl.sharding`; by default the first device.
      dtype: of the computation; by default that of the parameters.
      param_dtype: by default the checkpoint's own; float16 and quantised weights become float32.

    Raises: `UserError` with the file, the tensor, what was expected and what was found.
    """
    path = Path(path)
    if is_run(path):
        model = load_run(path, mesh, dtype, param_dtype)
        return model, read_tokenizer(path) if (path / TOKENIZER).is_file() else None
    checkpoint = open_checkpoint(path)
    params = param_dtype or checkpoint.config.param_dtype
    config = dataclasses.replace(checkpoint.config, param_dtype=params, dtype=dtype or params)
    return load_params(config, checkpoint.stored, mesh), checkpoint.tokenizer()


def config_of(path: str | Path) -> DecoderConfig:
    """The config of the Hugging Face directory or GGUF file at `path`; reads no weights."""
    return open_checkpoint(Path(path)).config


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a Hugging Face directory or a GGUF file and checks all but the weights' values."""
    fields: dict[str, Any] = {}
    if path.suffix == ".gguf":
        file = open_gguf(path)
        config = config_from_gguf(file.metadata, file.tensors, path)
        table = gguf_table(file.metadata["general.architecture"], TABLE)
        stored = match(parameters(config), file.tensors, table, path, [re.escape(FACTORS)])
        has_tokenizer = "tokenizer.ggml.tokens" in file.metadata
    else:
        fields = _config_json(path)
        config = config_from_hf(fields, path / "config.json")
        block = fp8.block_size(fields, path / "config.json")
        tensors = open_safetensors(path, weight_block_size=block)
        files = {tensor.file for tensor in tensors.values()}
        where = files.pop() if len(files) == 1 else path
        ignored = (*IGNORED, "lm_head.weight") if config.tie_embeddings else IGNORED
        stored = match(parameters(config), tensors, TABLE, where, ignored)
        has_tokenizer = (path / TOKENIZER).is_file()
    dtype = stored_dtype(stored)
    held: Dtype = "bfloat16" if dtype == "bfloat16" else "float32"
    config = dataclasses.replace(config, param_dtype=held, dtype=held)
    return Checkpoint(path, config, stored, dtype, fields, has_tokenizer)


def _config_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"no model {path}.{nearest(str(path), map(str, path.parent.glob('*')))}")
    file = path / "config.json"
    if not file.is_file():
        raise UserError(
            f"{path}: expected a Hugging Face directory, which has a config.json, an mmrl run "
            "directory or a .gguf file"
        )
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected an object, found {found!r}")
    return found


def load_params(config: DecoderConfig, stored: Sequence[Stored], mesh: Mesh | None) -> Decoder:
    """The decoder with the parameters that `stored` says where to find."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    places = dict(nnx.to_flat_state(placement(abstract, mesh)))
    readers = {s.parameter.path: s.read for s in stored}
    flat = []
    for path, variable in nnx.to_flat_state(abstract):
        shape, dtype = variable.get_value().shape, np.dtype(variable.get_value().dtype)
        place = places[path].get_value()
        read = functools.partial(readers[path], dtype=dtype)
        flat.append((path, variable.replace(sharded(shape, place, read))))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def sharded(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """As `jax.make_array_from_callback`, with one shard at a time in host memory.

    A shard that several devices hold is read once.
    """
    devices: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        key = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape))
        devices.setdefault(key, []).append(device)
    arrays = []
    for key, holders in devices.items():
        shard = read(tuple(slice(*bounds) for bounds in key))
        arrays += [jax.device_put(shard, device) for device in holders]
        jax.block_until_ready(arrays[-len(holders) :])
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def read_tokenizer(path: Path) -> "Tokenizer":
    # Imported here: the tokenizers package is needed for pretrained models alone.
    from mmrl.text import load_tokenizer

    return load_tokenizer(path)
