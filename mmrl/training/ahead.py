"""The supervised update, compiled from shapes while the run reads its data and evaluates."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmrl.sharding import shardings
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import make_optimizer
from mmrl.training.state import abstract_model, optimizer_places, placed, split_trained
from mmrl.training.update import supervised_update


def compile_ahead(config: TrainConfig, phase: str, mesh: Mesh) -> None:
    """Begins to compile the update of a supervised phase; its first step waits for the rest.

    For one process, whose batches lie on no mesh yet. What fails here fails again in that step,
    which says so.
    """
    if phase != "rl" and jax.process_count() == 1:
        worker = ThreadPoolExecutor(max_workers=1)
        worker.submit(_compile_update, config, phase, mesh)
        worker.shutdown(wait=False)


def _compile_update(config: TrainConfig, phase: str, mesh: Mesh) -> None:
    part = getattr(config, phase)
    graphdef, shapes = abstract_model(config.model)
    params, frozen = split_trained(placed(shapes, shardings(shapes, mesh)))
    optimizer = make_optimizer(part.optimizer)
    opt_state = placed(*optimizer_places(optimizer, params, mesh, part.optimizer.offload))
    dtypes = {"tokens": jnp.int32, "segment_ids": jnp.int32, "mask": jnp.float32}
    shape = part.batch_size, part.length
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in dtypes.items()}
    with jax.set_mesh(mesh):
        arguments = dict(frozen=frozen, graphdef=graphdef, optimizer=optimizer)
        supervised_update.lower(params, opt_state, batch, **arguments).compile()
