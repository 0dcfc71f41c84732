"""The small pieces every layer is made of: parameters, RMSNorm and rotary position embedding."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.models.config import DecoderConfig
from mmrl.sharding import Axes, constrain


@dataclass(frozen=True)
class LayerInit:
    """Makes the parameters of a run of equal layers, stacked over all its layers in the model.

    `Decoder` scans over the leading axis, so that a layer's `__call__` sees its own slice.
    """

    rngs: nnx.Rngs
    config: DecoderConfig
    layers: int

    def __call__(
        self,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        init: nnx.Initializer | None = None,
        dtype: str | None = None,
    ) -> nnx.Param:
        """A parameter of shape [layers, *shape] with logical axes ("layers", *axes)."""
        init = init or nnx.initializers.normal(self.config.initializer_range)
        dtype = dtype or self.config.param_dtype
        value = init(self.rngs.params(), (self.layers, *shape), dtype)
        return nnx.Param(value, axes=("layers", *axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def project(formula: str, x: jax.Array, w: jax.Array, axes: Axes = ()) -> jax.Array:
    """`jnp.einsum(formula, x, w)` of activations and weights, the weights cast to x.dtype.

    `axes` are the logical axes of w. Where a mesh cuts "embed", the weights are gathered: XLA would
    else move activations instead where they are few, and on a mesh of data, fsdp and tensor it
    mixes up their rows (jaxlib 0.10.2; `tests/training/test_mesh.py` has the case).

    The axes that are summed over come last in x and first in w. They are summed in that order: an
    einsum may choose another, for which the weights would be transposed.

    Differentiated by hand so that the product for the weights has the saved x as its left operand,
    which a CPU must transpose, and not the incoming gradient: XLA would fuse that transposition
    into the elementwise work before it, at 10 times its cost.
    """
    operands, out = formula.split("->")
    summed = sum(axis not in out for axis in operands.split(",")[1])
    return jnp.tensordot(x, _gathered(w, x.dtype, axes), summed)


def _gathered(w: jax.Array, dtype, axes: Axes) -> jax.Array:
    w = w.astype(dtype)
    return constrain(w, *(None if axis == "embed" else axis for axis in axes)) if axes else w


def _project_forward(formula, x, w, axes):
    # x is kept for the gradient of the weights alone: frozen ones need neither.
    kept = x.value if w.perturbed else None
    return project(formula, x.value, w.value, axes), (kept, w.value)


def _project_backward(formula, axes, residuals, out_bar):
    x, w = residuals
    inputs, out = formula.split("->")
    of_x, of_w = inputs.split(",")
    whole = _gathered(w, out_bar.dtype, axes)
    x_bar = jnp.einsum(f"{out},{of_w}->{of_x}", out_bar, whole)
    if x is None:
        return x_bar, None
    w_bar = jnp.einsum(f"{of_x},{out}->{of_w}", x, out_bar)
    return x_bar, w_bar.astype(w.dtype)


project.defvjp(_project_forward, _project_backward, symbolic_zeros=True)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) over the last axis in float32, cast to x.dtype, times the weight.

    Args: x [..., N], weight [N]. The order of cast and weight is the reference model's
    (modeling_minimax_m1.py, MiniMaxM1RMSNorm).
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * weight.astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned weight."""

    def __init__(self, param: LayerInit, size: int, eps: float):
        self.weight = param((size,), ("norm",), init=nnx.initializers.ones)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps)


def rotary_frequencies(config: DecoderConfig) -> np.ndarray:
    """theta^(-2i/W), i = 0 … W/2-1, stretched by `rope_scaling`; float64 (RoFormer, 2104.09864)."""
    width, scaling = config.rotary_width, config.rope_scaling
    frequencies = config.rope_theta ** (-np.arange(0, width, 2) / max(width, 1))
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_context * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotary_turns(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of positions · frequencies, [B, T, W/2] float32 each."""
    angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


@jax.custom_vjp
def rotate(x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + W/2) of the first W dimensions of each head.

    Args: x [B, T, H, D], turns [B, T, W/2] of `rotary_turns`. Dimensions from W on pass through
    (MiniMax's `rotary_dim`). Computed in float32, returned in x.dtype.

    Its gradient is the rotation back; derived from the slices it would be sums of padded parts.
    """
    cos, sin = (turn[:, :, None] for turn in turns)
    half = cos.shape[-1]
    if not half:
        return x
    a = x[..., :half].astype(jnp.float32)
    b = x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


def _rotate_forward(x, turns):
    return rotate(x, turns), turns


def _rotate_backward(turns, x_bar):
    cos, sin = turns
    return rotate(x_bar, (cos, -sin)), None


rotate.defvjp(_rotate_forward, _rotate_backward)
