"""The arrays of a run: created sharded, carried through the loop, saved and restored."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from mmrl.compilation import run_once_options
from mmrl.errors import UserError
from mmrl.models import Decoder, DecoderConfig, load
from mmrl.models.config import HOW_IT_COMPUTES
from mmrl.sharding import shardings

HOST_MEMORY = "pinned_host"  # what TPUs and GPUs call it


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunState:
    """What a run's steps change, and what they start from.

    `params` are trained, `frozen` the other parameters of the model: with LoRA its base, without
    it none. `key` is the run's random key; `reference` the KL's, in place of `params`, or None.
    """

    params: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState
    key: jax.Array
    reference: nnx.State | None = None


def abstract_model(config: DecoderConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's graph and its parameters as shapes; allocates nothing."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))


def init_params(config: DecoderConfig, key: jax.Array, mesh: Mesh) -> nnx.State:
    """Random parameters that exist only as their shards, never whole on one device."""
    _, shapes = abstract_model(config)

    def init(key):
        return nnx.state(Decoder(config, nnx.Rngs(key)))

    places = shardings(shapes, mesh)
    return jax.jit(init, out_shardings=places, compiler_options=run_once_options())(key)


def load_initial(path: str, config: DecoderConfig, key: jax.Array, mesh: Mesh) -> nnx.State:
    """The parameters of the model at `path`, with fresh adapters where the config has LoRA.

    Raises `UserError` where the model has another shape than the config.
    """
    loaded, _ = load(path, mesh=mesh, dtype=config.dtype, param_dtype=config.param_dtype)
    found = dataclasses.replace(
        loaded.config, **{name: getattr(config, name) for name in HOW_IT_COMPUTES}
    )
    expected = dataclasses.replace(config, lora=None)
    for field in dataclasses.fields(DecoderConfig):
        is_, should = getattr(found, field.name), getattr(expected, field.name)
        if is_ != should:
            raise UserError(
                f"initial={path} has {field.name}={is_!r} and config.model {should!r}: take the "
                "model's config from mmrl.models.config_of"
            )
    params = nnx.state(loaded)
    if config.lora is None:
        return params
    return nnx.merge_state(params, init_adapters(config, key, mesh))


def init_adapters(config: DecoderConfig, key: jax.Array, mesh: Mesh) -> nnx.State:
    """Fresh adapters for a base that is there already, as `init_params` makes them."""
    _, shapes = abstract_model(config)
    places = shardings(nnx.filter_state(shapes, nnx.LoRAParam), mesh)

    def init(key):
        return nnx.state(Decoder(config, nnx.Rngs(key)), nnx.LoRAParam)

    return jax.jit(init, out_shardings=places, compiler_options=run_once_options())(key)


def split_trained(params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """(trained, frozen) parameters: adapters and their base, or all and none without adapters."""
    adapters, base = nnx.split_state(params, nnx.LoRAParam, ...)
    return (adapters, base) if jax.tree.leaves(adapters) else (base, adapters)


def init_optimizer(
    optimizer: optax.GradientTransformation, params: nnx.State, mesh: Mesh, offload: bool = False
):
    """The optimizer's state, its moments sharded as the parameters are; `offload`: on the host.

    Raises `UserError` where the devices have no host memory to compute with.
    """
    _, places = optimizer_places(optimizer, params, mesh, offload)
    return jax.jit(optimizer.init, out_shardings=places)(params)


def optimizer_places(optimizer, params, mesh: Mesh, offload: bool = False) -> tuple[Any, Any]:
    """The optimizer's state as shapes, and where `init_optimizer` puts it."""
    shapes = jax.eval_shape(optimizer.init, params)
    places = shardings(shapes, mesh)
    return shapes, host_memory(shapes, places) if offload else places


def placed(tree, places):
    """The shapes of `tree`, each with its sharding."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def host_memory(shapes, places):
    """Where `mmrl.training.optimizer.offloaded` puts an optimizer's state: `places`, on the host.

    Raises `UserError` where the devices have no such memory.
    """
    device = jax.tree.leaves(places)[0].mesh.devices.flat[0]
    found = {memory.kind for memory in device.addressable_memories()}
    if HOST_MEMORY not in found:
        raise UserError(
            f"optimizer.offload needs devices with the memory {HOST_MEMORY!r}, and these have "
            f"{', '.join(sorted(found))}: set it to False and cut the state by mesh.fsdp"
        )
    return jax.tree.map(
        lambda x, place: place.with_memory_kind(HOST_MEMORY) if x.ndim else place, shapes, places
    )
