"""Low-rank adapters: what they compute, what is differentiated, and what merging leaves."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from oracles.numpy_decoder import decoder as numpy_decoder
from oracles.small_models import HYBRID

from mmrl import config as configs
from mmrl.models import Cache, Decoder, DecoderConfig, LoraConfig
from mmrl.models.lora import merge_adapters
from mmrl.sharding import MeshConfig, make_mesh, shardings

LORA_HYBRID = dataclasses.replace(HYBRID, lora=LoraConfig(rank=3, alpha=5.0))
# No two of its sizes are equal, so that a shape says which weight it is.
DENSE = DecoderConfig(
    vocab_size=37,
    hidden_size=24,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    intermediate_size=44,
    initializer_range=0.2,
    tie_embeddings=True,
)
LORA_DENSE = dataclasses.replace(DENSE, lora=LoraConfig(rank=3, alpha=5.0))


def randomised(config: DecoderConfig) -> Decoder:
    """A model whose adapters matter: B is random and not 0."""
    graphdef, adapters, base = nnx.split(Decoder(config, nnx.Rngs(0)), nnx.LoRAParam, ...)
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [
        0.2 * jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), base)


def merged(model: Decoder) -> Decoder:
    config = dataclasses.replace(model.config, lora=None)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    return nnx.merge(graphdef, merge_adapters(nnx.state(model), model.config.lora))


def folded(tree, scale: float):
    """Parameters in float64 with scale · A B added to each adapted weight, rank by rank."""
    if not isinstance(tree, dict):
        return np.asarray(tree, np.float64)
    out = {key: folded(value, scale) for key, value in tree.items()}
    for key in [key for key in out if str(key).endswith("_lora")]:
        a, b = out[key]["a"], out[key]["b"]
        for layer in range(len(a)):
            for r in range(a.shape[-1]):
                out[key[:-5]][layer] += scale * np.multiply.outer(a[layer, ..., r], b[layer, r])
    return out


@functools.partial(jax.jit, static_argnames="graphdef")
def _forward(graphdef, params, tokens, cache):
    return nnx.merge(graphdef, params)(tokens, cache=cache)


def forward(model: Decoder, tokens, cache=None):
    return _forward(*nnx.split(model), tokens, cache)


def relative_error(actual, expected) -> float:
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("config", [LORA_HYBRID, LORA_DENSE], ids=["hybrid", "dense"])
def test_fresh_adapters_change_no_logit_and_no_weight_of_the_base(config, tokens):
    model = Decoder(config, nnx.Rngs(0))
    base = Decoder(dataclasses.replace(config, lora=None), nnx.Rngs(0))
    weights = nnx.state(model, nnx.Not(nnx.LoRAParam))
    for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(nnx.state(base)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(forward(model, tokens)[0], forward(base, tokens)[0])


def test_a_starts_uniform_over_its_inputs_and_b_at_zero():
    """Kaiming's uniform with a = sqrt(5) is ±1/sqrt(inputs): a variance of 1/(3 · inputs)."""
    config = dataclasses.replace(DENSE, hidden_size=48, lora=LoraConfig(rank=16))
    layer = Decoder(config, nnx.Rngs(0)).runs[0]
    for adapter, inputs in (
        (layer.attention.q_lora, 48),
        (layer.attention.out_lora, 60),
        (layer.mlp.down_lora, 44),
    ):
        a = np.asarray(adapter.a[...])
        bound = 1 / math.sqrt(inputs)
        assert 0.99 * bound < np.abs(a).max() <= bound
        assert a.var() == pytest.approx(bound**2 / 3, rel=0.1)
        assert not np.asarray(adapter.b[...]).any()


def test_adapted_logits_equal_a_float64_pass_with_the_products_folded_in(tokens):
    """Lightning's qkv, output_gate and o, and softmax's q, k, v and o; prefill and decode."""
    model = randomised(LORA_HYBRID)
    params = folded(nnx.to_pure_dict(nnx.state(model)), scale=5 / 3)
    expected = np.stack([numpy_decoder(row, params, model.config) for row in tokens])
    unadapted = forward(Decoder(HYBRID, nnx.Rngs(0)), tokens)[0]
    assert relative_error(unadapted, expected) > 0.1
    assert relative_error(forward(model, tokens)[0], expected) < 1e-5
    cache = Cache.create(model.config, len(tokens), tokens.shape[1])
    _, cache = forward(model, tokens[:, :-2], cache)
    for t in (-2, -1):
        logits, cache = forward(model, tokens[:, t, None], cache)
        assert relative_error(logits[:, 0], expected[:, t]) < 1e-5


@pytest.mark.parametrize("config", [LORA_HYBRID, LORA_DENSE], ids=["hybrid", "dense"])
def test_merging_keeps_the_logits_and_leaves_no_adapter(config, tokens):
    model = randomised(config)
    plain = merged(model)
    assert not jax.tree.leaves(nnx.state(plain, nnx.LoRAParam))
    expected = forward(model, tokens)[0]
    assert relative_error(forward(plain, tokens)[0], np.asarray(expected)) < 1e-5


def test_merging_bfloat16_weights_rounds_the_float32_sum_once():
    model = randomised(dataclasses.replace(LORA_DENSE, param_dtype="bfloat16"))
    adapter, weight = model.runs[0].mlp.up_lora, model.runs[0].mlp.up
    assert adapter.a.dtype == jnp.float32 and weight.dtype == jnp.bfloat16
    a, b = (np.asarray(x[...], np.float64) for x in (adapter.a, adapter.b))
    total = np.asarray(weight[...], np.float64) + 5 / 3 * np.einsum("lmr,lrf->lmf", a, b)
    actual = merged(model).runs[0].mlp.up[...]
    assert actual.dtype == jnp.bfloat16
    # Half a unit in the last of 8 bits, and the float32 sum's own rounding.
    assert (np.abs(np.asarray(actual, np.float64) - total) <= np.abs(total) * 2**-8 + 1e-6).all()


def sub_jaxprs(jaxpr):
    """The jaxpr and all those of its equations."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            yield from sub_jaxprs(inner)


def weight_sized(program, model: Decoder) -> set[str]:
    """Primitives whose results have the size of a weight's layer or of its stack."""
    base = nnx.state(model.runs, nnx.Not(nnx.LoRAParam))
    stacks = [x.shape for x in jax.tree.leaves(base) if x.ndim > 2]
    sizes = {math.prod(s) for s in stacks} | {math.prod(s[1:]) for s in stacks}
    return {
        equation.primitive.name
        for jaxpr in sub_jaxprs(program.jaxpr)
        for equation in jaxpr.eqns
        for out in equation.outvars
        if math.prod(out.aval.shape) in sizes
    }


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_gradient_of_a_frozen_weight_is_ever_formed(remat):
    """Even before XLA removes what is unused: the traced program has no array of that size.

    What remains only hands W on, and the same search finds the gradients of a full update.
    """
    config = dataclasses.replace(LORA_DENSE, remat=remat)
    model = Decoder(config, nnx.Rngs(0))
    tokens = np.zeros((2, 7), int)
    graphdef, adapters, base = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapters, base):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, adapters, base)(tokens)[0]))

    hands_on = {"reshape", "transpose", "squeeze", "convert_element_type"}
    program = jax.make_jaxpr(jax.grad(loss))(adapters, base)
    assert weight_sized(program, model) <= hands_on
    everything = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(adapters, base)
    assert {"scan", "dot_general"} <= weight_sized(everything, model)


def test_gradients_of_adapters_do_not_depend_on_whether_the_base_has_gradients_too(tokens):
    model = randomised(LORA_DENSE)
    graphdef, adapters, base = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapters, base):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, adapters, base)(tokens)[0]))

    alone = jax.jit(jax.grad(loss))(adapters, base)
    together, _ = jax.jit(jax.grad(loss, argnums=(0, 1)))(adapters, base)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert relative_error(a, np.asarray(b)) < 1e-5


def test_adapters_are_sharded_as_their_weights_and_give_the_same_logits(tokens):
    config = dataclasses.replace(LORA_DENSE, hidden_size=32)
    model = randomised(config)
    expected = np.asarray(forward(model, tokens)[0])
    graphdef, params = nnx.split(model)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(params, mesh))
        adapter = nnx.merge(graphdef, placed).runs[0].attention.q_lora
        assert tuple(adapter.a[...].sharding.spec) == (None, "fsdp", None)
        assert tuple(adapter.b[...].sharding.spec) == (None, None, "tensor", None)
        logits, _ = _forward(graphdef, placed, tokens, None)
    assert relative_error(np.asarray(logits), expected) < 1e-5


@pytest.mark.parametrize(
    ("config", "lora", "message"),
    [
        (HYBRID, {"targets": ("q", "gate")}, "no projection 'gate', and experts take no adapters"),
        (DENSE, {"targets": ("qkv",)}, "'qkv'; targets may be q, k, v, o, gate, up, down"),
        (DENSE, {"rank": 0}, "rank must be at least 1, got 0"),
        (DENSE, {"targets": ("q", "q")}, "targets must name each projection once"),
        (DENSE, {"targets": ()}, "targets must name each projection once"),
    ],
)
def test_targets_that_fit_no_projection_say_which_do(config, lora, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, lora=LoraConfig(**lora))


def test_only_the_targets_have_adapters():
    config = dataclasses.replace(DENSE, lora=LoraConfig(rank=2, targets=("v", "down")))
    state = nnx.state(Decoder(config, nnx.Rngs(0)), nnx.LoRAParam)
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    assert paths == {
        f"runs.0.{part}_lora.{matrix}" for part in ("attention.v", "mlp.down") for matrix in "ab"
    }


def test_one_flag_turns_adapters_on_and_json_keeps_them():
    changes = {"lora.rank": "4", "lora.targets": "q,down"}
    config = configs.override(DENSE, changes)
    assert config.lora == LoraConfig(rank=4, targets=("q", "down"))
    assert configs.from_dict(DecoderConfig, configs.to_dict(config)) == config
