"""FLOPs from a config against those counted in the jaxpr of the decoder itself."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from oracles.jaxpr_flops import product_flops

from mmrl.models import Cache, Decoder, DecoderConfig, LoraConfig, minimax_m1
from mmrl.plan.arithmetic import (
    Workload,
    backward_flops,
    decode_flops,
    forward_flops,
    recomputed_flops,
    step_flops,
)
from mmrl.rollout.sampler import prefill

ROWS, TOKENS, CPU_CHUNK = 3, 70, 32
BASE = DecoderConfig(
    vocab_size=50,
    hidden_size=24,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=20,
)
HYBRID = dataclasses.replace(BASE, layer_pattern=("lightning", "softmax"), num_experts=4)
CONFIGS = {
    "dense": dataclasses.replace(BASE, attention_bias=True),
    "hybrid, every expert": HYBRID,
    "sorted experts": dataclasses.replace(BASE, num_experts=8, router="sigmoid", qk_norm="width"),
    "shared expert": dataclasses.replace(BASE, num_experts=8, shared_expert_size=12),
    "lightning, adapters": dataclasses.replace(
        BASE, layer_pattern=("lightning",), lora=LoraConfig(rank=3)
    ),
}
COUNTED = {"visible": "all", "chunk": CPU_CHUNK}


def parts(config: DecoderConfig):
    """Graph, trained and other parameters as shapes."""
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    return nnx.split(model, nnx.Param if config.lora is None else nnx.LoRAParam, ...)


def loss_of(graph):
    def loss(trained, rest):
        logits, _ = nnx.merge(graph, trained, rest)(jnp.zeros((ROWS, TOKENS), jnp.int32))
        return logits.sum()

    return loss


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_flops_are_those_of_the_jaxpr(name):
    graph, *params = parts(CONFIGS[name])
    expected = product_flops(loss_of(graph), *params)
    assert forward_flops(CONFIGS[name], ROWS, TOKENS, **COUNTED).total == expected


@pytest.mark.parametrize(
    "name, remat",
    [
        ("dense", "none"),
        ("dense", "full"),
        ("hybrid, every expert", "none"),
        ("hybrid, every expert", "full"),
        ("dense", "projections"),
        ("dense", "products"),
        ("hybrid, every expert", "projections"),
        ("hybrid, every expert", "products"),
        ("sorted experts", "full"),
        ("sorted experts", "projections"),
        ("sorted experts", "products"),
        ("shared expert", "full"),
        ("shared expert", "projections"),
        ("shared expert", "products"),
        ("lightning, adapters", "projections"),
        ("lightning, adapters", "products"),
        ("lightning, adapters", "none"),
        ("lightning, adapters", "full"),
    ],
)
def test_flops_of_a_gradient_are_those_of_the_jaxpr(name, remat):
    config = dataclasses.replace(CONFIGS[name], remat=remat)
    graph, *params = parts(config)
    expected = product_flops(jax.grad(loss_of(graph)), *params)
    passes = (forward_flops, backward_flops, recomputed_flops)
    found = sum(flops(config, ROWS, TOKENS, **COUNTED).total for flops in passes)
    assert found == expected


def test_adapters_beside_a_dense_mlp_are_counted():
    config = dataclasses.replace(BASE, lora=LoraConfig(rank=3, targets=("q", "down")), remat="full")
    graph, *params = parts(config)
    passes = (forward_flops, backward_flops, recomputed_flops)
    found = sum(flops(config, ROWS, TOKENS, **COUNTED).total for flops in passes)
    assert found == product_flops(jax.grad(loss_of(graph)), *params)


def test_flops_after_a_shared_prompt_are_those_of_the_jaxpr():
    prompts, width, group = 2, 40, 3
    graph, *params = parts(HYBRID)

    def read(*params):
        model = nnx.merge(graph, *params)
        tokens = jnp.zeros((prompts, width), jnp.int32)
        cache, _ = prefill(model, tokens, jnp.full((prompts,), width))
        responses = jnp.zeros((prompts * group, TOKENS), jnp.int32)
        return model(responses, cache=cache.fork(group, slots=0))[0].sum()

    found = forward_flops(HYBRID, prompts, width, head=False, **COUNTED)
    found += forward_flops(HYBRID, prompts * group, TOKENS, context=width, **COUNTED)
    assert found.total == product_flops(read, *params)


def test_flops_of_one_token_are_those_of_the_jaxpr():
    slots, rows = 90, 3
    config = dataclasses.replace(HYBRID, num_kv_heads=1)
    graph, *params = parts(config)

    def write(*params):
        cache = Cache.create(config, rows, slots)
        return nnx.merge(graph, *params)(jnp.zeros((rows, 1), jnp.int32), cache=cache)[0].sum()

    found = forward_flops(config, rows, 1, context=slots - 1)
    # The recurrence writes and decays its state without a product: 2 of 5 d² are one.
    assert found.total - found.lightning * 3 / 5 == product_flops(write, *params)


@pytest.mark.parametrize("context", [0, 5])
def test_causal_attention_counts_the_keys_that_each_query_sees(context):
    pairs = sum(1 for t in range(7) for s in range(context + 7) if s <= context + t)
    config = dataclasses.replace(BASE, num_layers=1)
    expected = 2 * pairs * config.num_heads * (2 * config.head_dim)
    assert forward_flops(config, 1, 7, context=context).softmax == expected
    assert decode_flops(config, 1, 7, context=context).softmax == expected


def test_decoding_is_the_sum_of_its_steps():
    total = decode_flops(HYBRID, 2, 5, context=9).total
    steps = [forward_flops(HYBRID, 2, 1, context=9 + t).total for t in range(5)]
    assert total == sum(steps)


def test_m1_has_the_reference_figures():
    one = forward_flops(minimax_m1(), 1, 1)
    # 64 heads x 5 x 128² x 70 layers; 2 x 47.17B with the head; softmax of token 100,000.
    assert one.lightning == 64 * 5 * 128 * 128 * 70
    assert one.projections + one.router + one.mlp + one.head == pytest.approx(9.4345e10, rel=1e-3)
    at_100k = forward_flops(minimax_m1(), 1, 1, context=99_999)
    assert at_100k.softmax == 10 * 64 * 2 * (128 + 128) * 100_000


def test_a_step_reads_prompts_once_and_updates_with_three_times_the_products():
    work = Workload(prompts=2, group_size=4, prompt_length=300, response_length=600)
    config = dataclasses.replace(BASE, remat="full")
    found = step_flops(config, work, recompute=False)
    weights = found["prefill"].mlp / (2 * 300), found["decode"].head / (2 * 4 * 600)
    assert weights == (2 * 4 * 3 * 24 * 20, 2 * 50 * 24)
    assert found["prefill"].head == 0
    assert found["update"].mlp == 3 * (found["prefill"].mlp + found["decode"].mlp)
    assert found["update"].head == 3 * found["decode"].head
    repeated = step_flops(config, work)["update"].total / found["update"].total
    assert 1.2 < repeated < 4 / 3
