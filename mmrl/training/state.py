"""The arrays of a run: created sharded, carried through the loop, saved and restored."""

from dataclasses import dataclass

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from mmrl.models import Decoder, DecoderConfig
from mmrl.sharding import shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunState:
    """Parameters, optimizer state, the run's random key, and the KL's reference or None."""

    params: nnx.State
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

    return jax.jit(init, out_shardings=shardings(shapes, mesh))(key)


def init_optimizer(optimizer: optax.GradientTransformation, params: nnx.State, mesh: Mesh):
    """The optimizer's state, its moments sharded as the parameters are."""
    shapes = jax.eval_shape(optimizer.init, params)
    return jax.jit(optimizer.init, out_shardings=shardings(shapes, mesh))(params)
