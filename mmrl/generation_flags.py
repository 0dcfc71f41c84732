"""The flags of the binaries that load a model and sample from it."""

import dataclasses
from typing import Any

import jax
from absl import flags, logging

from mmrl.errors import user_mistakes
from mmrl.rollout import SamplingConfig
from mmrl.sharding import MeshConfig, make_mesh

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run directory, a Hugging Face directory or a GGUF file.", required=True
)
SYSTEM = flags.DEFINE_string("system", None, "A system message before the conversation.")
RAW = flags.DEFINE_boolean("raw", False, "Prompts as they are, without the chat template.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of what is sampled.", lower_bound=0)
TENSOR_PARALLEL = flags.DEFINE_integer(
    "tensor_parallel", 1, "Devices that share the heads of each layer.", lower_bound=1
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


def mesh_from(devices: list[jax.Device]) -> jax.sharding.Mesh:
    """A mesh of these devices, of which --tensor_parallel share a model."""
    with user_mistakes():
        return make_mesh(MeshConfig(tensor=TENSOR_PARALLEL.value), devices)


def only_warnings() -> None:
    """Keeps what libraries log out of the terminal, unless --verbosity asks for it."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
