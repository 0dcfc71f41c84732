"""The flags of the binaries that load a model and sample from it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags, logging

from mmrl.compilation import enable_compilation_cache
from mmrl.errors import UserError, user_mistakes
from mmrl.models import Decoder, load
from mmrl.rollout import SamplingConfig
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.text import Tokenizer

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run directory, a Hugging Face directory or a GGUF file.", required=True
)
SYSTEM = flags.DEFINE_string("system", None, "A system message before the conversation.")
RAW = flags.DEFINE_boolean("raw", False, "Prompts as they are, without the chat template.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of what is sampled.", lower_bound=0)
TENSOR_PARALLEL = flags.DEFINE_integer(
    "tensor_parallel", 1, "Devices that share the heads of each layer.", lower_bound=1
)
LOOP_COPIES = flags.DEFINE_boolean(
    "loop_copies",
    True,
    "Decode from a copy of the layers' weights as a CPU or GPU reads them best; without it slower, "
    "in the memory of one.",
)
_SETTINGS: dict[str, flags.FlagHolder[Any]] = {
    "temperature": flags.DEFINE_float("temperature", None, "Sampling temperature; 0 is greedy."),
    "top_p": flags.DEFINE_float("top_p", None, "Sample from the fewest tokens that reach this."),
    "top_k": flags.DEFINE_integer("top_k", None, "Sample from so many tokens; 0 is from all."),
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", None, "Limit of a response."),
}


def sampling_from(base: SamplingConfig) -> SamplingConfig:
    """`base` with what the flags say otherwise."""
    changes: dict[str, Any] = {
        name: flag.value for name, flag in _SETTINGS.items() if flag.value is not None
    }
    with user_mistakes():
        return dataclasses.replace(base, **changes)


@contextlib.contextmanager
def loaded_model(*, all_devices: bool = False) -> Iterator[tuple[Decoder, Tokenizer]]:
    """The model of --checkpoint and its tokenizer; its mesh is set while the block runs.

    --tensor_parallel devices share a model: the first ones hold it, or `all_devices` hold copies.
    What libraries log stays out of the terminal unless --verbosity asks for it, and programs are
    cached. Raises `UserError` for a checkpoint without a tokenizer and for a mesh that cannot be.
    """
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    tensor = TENSOR_PARALLEL.value
    devices = jax.devices() if all_devices else jax.devices()[:tensor]
    with user_mistakes():
        mesh = make_mesh(MeshConfig(tensor=tensor), devices)
    with jax.set_mesh(mesh):
        model, tokenizer = load(CHECKPOINT.value, mesh=mesh)
        if tokenizer is None:
            raise UserError(f"{CHECKPOINT.value} has no tokenizer: expected its tokenizer.json")
        model.config = dataclasses.replace(model.config, loop_copies=LOOP_COPIES.value)
        yield model, tokenizer
