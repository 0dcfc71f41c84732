"""Low-rank adaptation (arXiv 2106.09685): adapters beside the decoder's projections.

An adapted layer computes y = W x + alpha / rank · B A x. W takes part as a constant: where only the
adapters (`nnx.LoRAParam`) are differentiated, neither its gradient nor the activations that would
be kept for it exist (`mmrl.models.layers.project`).
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmrl.models.config import DecoderConfig, LoraConfig, LoraTarget
from mmrl.models.layers import project

# Target -> the part of a layer, its weight, and how many of the weight's axes are inputs.
WEIGHTS: dict[LoraTarget, tuple[str, str, int]] = {
    "q": ("attention", "q", 1),
    "k": ("attention", "k", 1),
    "v": ("attention", "v", 1),
    "o": ("attention", "out", 2),
    "qkv": ("attention", "qkv", 1),
    "output_gate": ("attention", "gate", 1),
    "gate": ("mlp", "gate", 1),
    "up": ("mlp", "up", 1),
    "down": ("mlp", "down", 1),
}


class Adapter(nnx.Module):
    """alpha / rank · B A x beside a weight [L, *inputs, *outputs], for L layers.

    `a` [L, *inputs, R] starts uniform within ±1 / sqrt(size of the inputs), as in the authors' code
    and peft, `b` [L, R, *outputs] at 0. Both are float32, as an optimizer's moments must be.
    """

    def __init__(self, weight: nnx.Param, inputs: int, lora: LoraConfig, rngs: nnx.Rngs):
        layers, *shape = weight.shape
        _, *axes = weight.get_metadata("axes")
        a_shape = (layers, *shape[:inputs], lora.rank)
        bound = math.prod(shape[:inputs]) ** -0.5
        a = jax.random.uniform(rngs.params(), a_shape, jnp.float32, -bound, bound)
        b = jnp.zeros((layers, lora.rank, *shape[inputs:]), jnp.float32)
        self.a = nnx.LoRAParam(a, axes=("layers", *axes[:inputs], None))
        self.b = nnx.LoRAParam(b, axes=("layers", None, *axes[inputs:]))
        self.scale = lora.scale

    def __call__(self, formula: str, x: jax.Array) -> jax.Array:
        """The adapter's part of `project(formula, x, weight)`."""
        operands, out = formula.split("->")
        of_x, of_w = operands.split(",")
        inputs = "".join(axis for axis in of_w if axis not in out)
        rows = "".join(axis for axis in of_x if axis not in inputs)
        narrow = project(f"{of_x},{inputs}r->{rows}r", x, self.a[...])
        narrow = checkpoint_name(narrow, "projection")
        outputs = of_w.removeprefix(inputs)
        return project(f"{rows}r,r{outputs}->{out}", narrow * self.scale, self.b[...])


def adapter_name(weight: str) -> str:
    """The name of a weight's adapter, beside it in the same part of a layer."""
    return f"{weight}_lora"


def adapted_weight(path: tuple) -> tuple:
    """The path of the weight whose adapter has a matrix at `path`."""
    return (*path[:-2], path[-2].removesuffix("_lora"))


def linear(part: nnx.Module, name: str, formula: str, x: jax.Array) -> jax.Array:
    """`project` by the weight `name` of a part of a layer, with its adapter where it has one."""
    weight = getattr(part, name)
    y = project(formula, x, weight[...], weight.get_metadata("axes")[1:])
    adapter = getattr(part, adapter_name(name), None)
    return checkpoint_name(y if adapter is None else y + adapter(formula, x), "projection")


def add_adapters(layers: Iterable[nnx.Module], config: DecoderConfig, rngs: nnx.Rngs) -> None:
    """Gives the runs of layers the adapters of `config.lora`."""
    for layer in layers:
        for target in config.lora_targets:
            part_name, name, inputs = WEIGHTS[target]
            part = getattr(layer, part_name)
            if config.lora is not None and hasattr(part, name):
                adapter = Adapter(getattr(part, name), inputs, config.lora, rngs)
                setattr(part, adapter_name(name), adapter)


def merge_adapters(params: nnx.State, lora: LoraConfig) -> nnx.State:
    """Parameters of the same function without adapters: W + alpha / rank · B A for each adapted W.

    The sum is taken in float32, a layer at a time, and rounded to W's dtype.
    """
    flat = dict(nnx.to_flat_state(params))
    matrices = [path for path, v in flat.items() if isinstance(v, nnx.LoRAParam)]
    # Without a set: every process must compute the sums in the same order.
    for path in dict.fromkeys(map(adapted_weight, matrices)):
        adapter = (*path[:-1], adapter_name(path[-1]))
        a, b = flat.pop((*adapter, "a")), flat.pop((*adapter, "b"))
        weight = flat[path]
        flat[path] = weight.replace(_merged(weight[...], a[...], b[...], lora.scale))
    return nnx.from_flat_state(flat)


@jax.jit
def _merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    def one_layer(weights):
        w, a, b = weights
        product = jnp.matmul(
            a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1), precision="highest"
        )
        return (w.astype(jnp.float32) + scale * product.reshape(w.shape)).astype(w.dtype)

    return jax.lax.map(one_layer, (weight, a, b))
