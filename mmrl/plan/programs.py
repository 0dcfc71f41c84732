"""The programs of an RL step, lowered from shapes alone for devices that need not be there.

They are the trainer's own: `policy_update`, `generate` in the sampler's layout (prefill and the
decode loop are one program), and the move of the parameters from one layout to the other.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mmrl import sharding
from mmrl.rollout import Rollout
from mmrl.rollout.memory import prompt_batches
from mmrl.rollout.modes import mode_limits
from mmrl.rollout.sampler import generate_program, program_arguments
from mmrl.training.config import TrainConfig
from mmrl.training.optimizer import make_optimizer
from mmrl.training.state import abstract_model, optimizer_places, placed, split_trained
from mmrl.training.update import policy_update

ProgramName = Literal["reshard", "rollout", "update"]
PROGRAMS: tuple[ProgramName, ...] = ("reshard", "rollout", "update")


def lower(
    name: ProgramName, config: TrainConfig, mesh: Mesh, device_bytes: float | None = None
) -> jax.stages.Lowered | None:
    """One program of `config` on a mesh; None where parameters need not be moved.

    `device_bytes` is the memory of a device, of which `config.cache_memory_fraction` is a share.
    """
    with jax.set_mesh(mesh):
        if name == "reshard":
            return _reshard(config, mesh)
        if name == "rollout":
            return _rollout(config, mesh, device_bytes)
        return _update(config, mesh)


def parameters(config: TrainConfig, mesh: Mesh, layout: sharding.Layout = "train") -> nnx.State:
    """The model's parameters as shapes, each with its place."""
    _, shapes = abstract_model(config.model)
    with sharding.layout(layout):
        return placed(shapes, sharding.shardings(shapes, mesh))


def rollout_prompts(config: TrainConfig, mesh: Mesh, device_bytes: float | None = None) -> int:
    """Prompts that the sampler takes at once: all, or as many as the share of memory holds."""
    first = prompt_batches(
        None if device_bytes is None else config.cache_memory_fraction,
        device_bytes or 0.0,
        config.model,
        config.prompts_per_step,
        config.sampling,
        config.prompt_length,
        "decode",
        mesh.abstract_mesh,
    )[0]
    return first.stop - first.start


def rollout_arrays(config: TrainConfig, prompts: int) -> Rollout:
    """The sampler's result for so many prompts, as shapes."""
    _, shapes = abstract_model(config.model)
    return generate_program.eval_shape(*_sampling(config, shapes, prompts))


def _sampling(config: TrainConfig, params: nnx.State, prompts: int) -> tuple:
    """The arguments of `generate_program`, as shapes."""
    graphdef, _ = abstract_model(config.model)
    tokens = jax.ShapeDtypeStruct((prompts, config.prompt_length), jnp.int32)
    lengths = jax.ShapeDtypeStruct((prompts,), jnp.int32)
    return program_arguments(
        nnx.merge(graphdef, params),
        (tokens, lengths),
        config.sampling,
        jax.eval_shape(lambda: jax.random.key(0)),
        layout="decode",
        **mode_limits(config.modes, prompts, config.sampling.group_size),
    )


def _rollout(config: TrainConfig, mesh: Mesh, device_bytes: float | None) -> jax.stages.Lowered:
    prompts = rollout_prompts(config, mesh, device_bytes)
    return generate_program.lower(*_sampling(config, parameters(config, mesh, "decode"), prompts))


def _reshard(config: TrainConfig, mesh: Mesh) -> jax.stages.Lowered | None:
    before = jax.tree.leaves(parameters(config, mesh))
    after = [x.sharding for x in jax.tree.leaves(parameters(config, mesh, "decode"))]
    moving = sharding.misplaced(before, after)
    if not moving:
        return None
    return sharding.move.lower([before[i] for i in moving], tuple(after[i] for i in moving))


def _update(config: TrainConfig, mesh: Mesh) -> jax.stages.Lowered:
    graphdef, _ = abstract_model(config.model)
    trained, frozen = split_trained(parameters(config, mesh))
    optimizer = make_optimizer(config.optimizer)
    opt_state = placed(*optimizer_places(optimizer, trained, mesh, config.optimizer.offload))
    rollout = rollout_arrays(config, config.prompts_per_step // config.updates_per_rollout)
    rollout = placed(rollout, sharding.batch_shardings(rollout, mesh))
    score = jax.ShapeDtypeStruct(
        rollout.mask.shape, jnp.float32, sharding=rollout.behaviour_logprobs.sharding
    )
    scores = {"reference_logprobs": score} if config.objective.kl_coefficient else {}
    if config.objective.tis_high is not None:
        scores["old_logprobs"] = score
    return policy_update.lower(
        trained,
        opt_state,
        rollout,
        scores,
        frozen=frozen,
        graphdef=graphdef,
        optimizer=optimizer,
        objective=config.objective,
        temperature=config.sampling.temperature,
        micro_batches=config.micro_batches,
    )
