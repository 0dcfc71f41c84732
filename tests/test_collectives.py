"""What each strategy sends between devices, read from the compiled programs."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl import sharding
from mmrl.models import Cache, DecoderConfig
from mmrl.models.packing import Packing
from mmrl.plan.hlo import Collective, collectives
from mmrl.sharding import MeshConfig, batch_shardings, make_mesh
from mmrl.training.state import abstract_model

# Sizes that differ, so that a shape says what it is the shape of.
CONFIG = dataclasses.replace(
    HYBRID, vocab_size=160, hidden_size=32, num_layers=4, intermediate_size=72, num_kv_heads=4
)
ROWS, LENGTH, SLOTS = 8, 48, 256
DEVICES = 4
STRATEGIES = ("data", "fsdp", "expert", "sequence", "tensor")


def placed(tree, places):
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def parameters(config: DecoderConfig, mesh):
    _, shapes = abstract_model(config)
    return placed(shapes, sharding.shardings(shapes, mesh))


def gradients_program(
    sizes: dict[str, int], config: DecoderConfig = CONFIG, packed: int | None = None
) -> list[Collective]:
    """The collectives of loss and gradients of tokens [ROWS, LENGTH], or of the first half of each
    row, packed into so many places a device."""
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes), jax.devices()[: math.prod(sizes.values())])
    graphdef, _ = abstract_model(config)

    def loss(params, tokens):
        model = nnx.merge(graphdef, params)
        if packed is None:
            hidden, _, _ = model.hidden_states(tokens)
            return model.token_logprobs(hidden, tokens, None, 1.0)[0].mean()
        first = jnp.broadcast_to(jnp.arange(LENGTH) < LENGTH // 2, tokens.shape)
        packing = Packing.of(first, packed)
        segments = first.astype(jnp.int32)
        hidden, _, _ = model.hidden_states(tokens, segment_ids=segments, packing=packing)
        return model.token_logprobs(hidden, packing.pack(tokens), None, 1.0)[0].mean()

    with jax.set_mesh(mesh):
        tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
        tokens = placed(tokens, batch_shardings(tokens, mesh))
        params = parameters(config, mesh)
        places = sharding.shardings(params, mesh)
        program = jax.jit(jax.grad(loss), out_shardings=places)
        return collectives(program.lower(params, tokens).compile().as_text())


def decode_program(sizes: dict[str, int]) -> list[Collective]:
    """The collectives of one decoded token a row."""
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes), jax.devices()[: math.prod(sizes.values())])
    graphdef, _ = abstract_model(CONFIG)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, cache, tokens):
        with sharding.layout("decode"):
            logits, cache = nnx.merge(graphdef, params)(tokens, cache=cache)
            return jnp.argmax(logits[:, 0], axis=-1), cache

    with jax.set_mesh(mesh), sharding.layout("decode"):
        cache = jax.jit(lambda: Cache.create(CONFIG, ROWS, SLOTS)).lower().compile()
        shapes = jax.eval_shape(lambda: Cache.create(CONFIG, ROWS, SLOTS))
        cache = placed(shapes, cache.output_shardings)
        tokens = jax.ShapeDtypeStruct((ROWS, 1), jnp.int32)
        tokens = placed(tokens, batch_shardings(tokens, mesh))
        program = step.lower(parameters(CONFIG, mesh), cache, tokens).compile()
        return collectives(program.as_text())


def size_of_parameters(*names: str) -> int:
    """Bytes of the parameters with one of these logical axes, or of all."""
    _, shapes = abstract_model(CONFIG)
    return sum(
        math.prod(variable.get_value().shape) * 4
        for _, variable in nnx.to_flat_state(shapes)
        if not names or set(names) & set(variable.get_metadata()["axes"])
    )


def received(found: list[Collective], kind: str) -> float:
    return sum(c.bytes * c.times for c in found if c.kind == kind)


@functools.cache
def sent_for_gradients(axis: str) -> list[Collective]:
    return [c for c in gradients_program({axis: DEVICES}) if c.devices != 1]


@pytest.mark.parametrize("axis", STRATEGIES)
def test_each_strategy_uses_its_own_collectives(axis):
    kinds = {c.kind for c in sent_for_gradients(axis) if c.bytes > 1024}
    assert (
        kinds
        == {
            "data": {"all-reduce"},
            # Tokens of the embedding go to the devices that hold its columns, and come back.
            "fsdp": {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"},
            # A CPU has no ragged all-to-all: there it is gathered.
            "expert": {"all-gather", "reduce-scatter", "all-reduce"},
            "sequence": {"all-gather", "reduce-scatter", "all-reduce"},
            # Activations between layers are cut by columns, and gathered where they are multiplied.
            "tensor": {"all-gather", "all-reduce", "all-to-all"},
        }[axis]
    )


@pytest.mark.parametrize("axis", STRATEGIES)
def test_the_logits_of_all_tokens_or_words_are_nowhere_sent(axis):
    tokens = {ROWS * LENGTH, ROWS * LENGTH // DEVICES, LENGTH, LENGTH // DEVICES}
    for collective in sent_for_gradients(axis):
        for shape in collective.shapes:
            words = {CONFIG.vocab_size, CONFIG.vocab_size // DEVICES} & set(shape)
            assert not (words and tokens & set(shape)), collective


def test_data_parallelism_sends_each_gradient_once():
    found = sent_for_gradients("data")
    assert received(found, "all-reduce") == pytest.approx(size_of_parameters(), rel=0.01)


def test_packing_sends_no_activation():
    padded, packed = (
        sum(c.bytes * c.times for c in gradients_program({"data": DEVICES}, packed=size))
        for size in (None, ROWS // DEVICES * LENGTH // 2)
    )
    assert packed < 1.01 * padded


def test_fsdp_gathers_each_parameter_twice_and_no_activation():
    """Once in the forward and once in the backward pass, in the scan over the layers."""
    found = sent_for_gradients("fsdp")
    assert received(found, "all-gather") <= 2.02 * size_of_parameters("embed")
    assert all(LENGTH not in shape[:2] for c in found if c.kind == "all-gather" and c.bytes > 2048
               for shape in c.shapes)  # fmt: skip


def test_sequence_parallelism_gathers_keys_and_values_in_the_softmax_layer_alone():
    found = sent_for_gradients("sequence")
    keys = (ROWS, CONFIG.num_kv_heads, LENGTH, CONFIG.head_dim)
    state = (DEVICES, ROWS, CONFIG.num_heads, CONFIG.head_dim, CONFIG.head_dim)
    large = [c for c in found if c.kind == "all-gather" and c.bytes > 2048]
    assert {shape for c in large for shape in c.shapes} == {keys, state}
    softmax_layers = CONFIG.layer_pattern.count("softmax") * CONFIG.num_groups
    assert sum(c.times for c in large if c.shapes == (keys,)) == 2 * softmax_layers


@pytest.mark.parametrize("axis", STRATEGIES)
def test_decoding_sends_a_few_activations_and_neither_weights_nor_cache(axis):
    found = [c for c in decode_program({axis: DEVICES}) if c.devices != 1]
    widest = max(3 * CONFIG.num_heads * CONFIG.head_dim, CONFIG.intermediate_size)
    assert all(c.bytes <= 4 * ROWS * widest for c in found)
    assert not any(SLOTS in shape for c in found for shape in c.shapes)
    if axis == "data":
        assert not any(c.bytes > 64 for c in found)
