"""Wall time of lightning attention and of softmax attention on this machine's devices.

The heads are spread over the devices. A CPU has one for each core (`use_every_core`): XLA runs
batched products of this size on one thread of a device.

FLOPs and bytes are those that the result needs, whatever a contestant spends: for lightning
attention the products with the D x D state and its update, 4 D^2 a token and head forwards and 10
backwards; for causal softmax attention 2 T D and 5 T D; and every array moved once.
"""

import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.lightning_attention.api import PALLAS
from pallas_kernels.softmax_attention import softmax_attention

PASSES = ("forward", "forward_backward")
_PATIENCE = 5.0  # seconds, after which a run is not repeated


class Shape(NamedTuple):
    batch: int
    length: int
    heads: int
    dim: int
    dtype: str


class Peaks(NamedTuple):
    """What this device was seen to do."""

    flops: float  # FLOP/s of a large matrix product
    bandwidth: float  # bytes/s of reading one array and writing another


class Timing(NamedTuple):
    """One line of the table."""

    contestant: str
    direction: str
    shape: Shape
    seconds: float

    @property
    def flops(self) -> float:
        """That the result needs."""
        batch, length, heads, dim, _ = self.shape
        forward, both = (2, 7) if self.contestant == "softmax" else (4, 14)
        width = length if self.contestant == "softmax" else dim
        factor = forward if self.direction == "forward" else both
        return factor * batch * length * heads * dim * width

    @property
    def moved(self) -> float:
        """Bytes of q, k, v, out and the states, and of the cotangents and gradients."""
        batch, length, heads, dim, dtype = self.shape
        tokens = batch * length * heads * dim * jnp.dtype(dtype).itemsize
        states = 0 if self.contestant == "softmax" else 2 * 4 * batch * heads * dim**2
        forward = 4 * tokens + states
        return forward if self.direction == "forward" else forward + 7 * tokens + states


Contestant = Callable[[Shape, int], Iterator[Timing]]  # of a number of runs


def contestants() -> dict[str, Contestant]:
    """What can be timed here by name; says what is left out."""
    kernel = PALLAS.get(jax.default_backend())
    found: dict[str, Contestant] = {
        name: functools.partial(_time, name, functools.partial(_lightning, name))
        for name in ("xla", *([kernel[0]] if kernel else []))
    }
    found["softmax"] = functools.partial(_time, "softmax", _softmax)
    if jax.default_backend() != "cpu":
        return found
    if not importlib.util.find_spec("torch"):
        print("torch, transformers: left out, torch is not installed; pip install torch")
        return found
    from pallas_kernels import torch_baselines

    for name, function in torch_baselines.contestants().items():
        found[name] = functools.partial(_time_torch, name, function)
    return found


def use_every_core() -> None:
    """Makes each core of a CPU a device; only before JAX has looked for devices."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count())


def peaks(dtype: str) -> Peaks:
    """Measured now: a product of square matrices, and a copy too large for any cache."""
    on_cpu = jax.default_backend() == "cpu"
    size, elements = (2048, 2**26) if on_cpu else (8192, 2**29)
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)  # a GPU hurries over ones
    long = jnp.ones(elements, dtype)
    product = fastest_seconds(jax.jit(lambda x: x @ x), square)
    copy = fastest_seconds(jax.jit(lambda x: x + 1), long)
    return Peaks(2 * size**3 / product, 2 * long.nbytes / copy)


def fastest_seconds(function: Callable, *arguments: jax.Array, repeats: int = 5) -> float:
    """Wall-clock seconds of the fastest of up to `repeats` runs, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < _PATIENCE:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _time(name: str, function: Callable, shape: Shape, repeats: int) -> Iterator[Timing]:
    def both(q, k, v, dout):
        out, pullback = jax.vjp(function, q, k, v)
        return out, pullback(dout)

    arrays = [
        jax.device_put(jax.random.normal(key, shape[:4], shape.dtype), _by_heads(shape))
        for key in jax.random.split(jax.random.key(0), 4)
    ]
    yield Timing(
        name, "forward", shape, fastest_seconds(jax.jit(function), *arrays[:3], repeats=repeats)
    )
    if shape.length > 1:
        yield Timing(
            name, PASSES[1], shape, fastest_seconds(jax.jit(both), *arrays, repeats=repeats)
        )


def _by_heads(shape: Shape) -> NamedSharding:
    """[B, T, H, D] with the heads over as many devices as divide them."""
    count = math.gcd(shape.heads, jax.device_count())
    mesh = jax.make_mesh((count,), ("heads",), (AxisType.Auto,), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec(None, None, "heads"))


def _time_torch(name: str, function: Callable, shape: Shape, repeats: int) -> Iterator[Timing]:
    if shape.dtype != "float32":
        print(f"{name}: left out for {shape.dtype}, it is timed in float32")
        return
    for direction, seconds in function(*shape[:4], repeats).items():
        yield Timing(name, direction, shape, seconds)


def _lightning(implementation: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    heads = q.shape[2]
    slopes = 2.0 ** (-8 * jnp.arange(1, heads + 1) / heads)
    return lightning_attention(q, k, v, slopes, implementation=implementation)[0]


def _softmax(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal flash attention as the platform has it: cuDNN, JAX's TPU kernel, blocks in XLA."""
    if jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    if jax.default_backend() == "tpu":
        from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

        out = flash_attention(q, k, v, causal=True, sm_scale=q.shape[-1] ** -0.5)
        return jnp.swapaxes(out, 1, 2)
    time = jnp.broadcast_to(jnp.arange(q.shape[2]), (q.shape[0], q.shape[2]))
    q = jnp.swapaxes(q, 1, 2)
    return softmax_attention(q, k, v, q_positions=time, kv_positions=time)[0]
