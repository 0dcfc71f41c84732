"""Prices of tokens against hand arithmetic."""

import pytest

from mmrl.errors import UserError
from mmrl.models import DecoderConfig, parameter_count
from mmrl.plan.devices import parse_topology
from mmrl.plan.presets import minimax_m2, qwen2_5_7b
from mmrl.plan.roofline import Efficiency
from mmrl.plan.serving import serving

EVERYTHING = Efficiency(compute=1.0, memory=1.0, network=1.0)


def test_decoding_qwen_reads_weights_and_cache_once_a_step():
    found = serving(
        qwen2_5_7b(),
        parse_topology("h100:1"),
        batch=8,
        prompt=1000,
        response=500,
        dollars_per_hour=3.6,
        efficiency=EVERYTHING,
    )
    weights = 2 * (7_615_616_512 - 152_064 * 3584)
    cache = 8 * 1250 * (28 * 2 * 4 * 128 * 2 + 4)
    seconds = (weights + cache) / 3350e9
    assert found.decode.bound == "memory"
    assert found.decode.seconds == pytest.approx(seconds)
    assert found.tokens_per_second_per_row == pytest.approx(1 / seconds)
    assert found.dollars_out == pytest.approx(1e6 * seconds / 8 * 3.6 / 3600)


def test_prefilling_qwen_multiplies_every_weight_once_a_token():
    found = serving(
        qwen2_5_7b(),
        parse_topology("h100:1"),
        batch=1,
        prompt=4096,
        dollars_per_hour=3.6,
        efficiency=EVERYTHING,
    )
    products = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
    attention = 28 * 4 * 28 * 128 * 4097 / 2
    seconds = (2 * products + attention) / 989e12
    assert found.prefill.bound == "compute"
    assert found.dollars_in == pytest.approx(1e6 * seconds * 3.6 / 3600)


def test_a_lightning_state_is_read_and_written():
    config = DecoderConfig(
        vocab_size=2,
        hidden_size=2,
        num_layers=3,
        num_heads=64,
        num_kv_heads=1,
        head_dim=128,
        intermediate_size=2,
        layer_pattern=("lightning",),
    )
    options = {"batch": 1000, "efficiency": EVERYTHING, "cache_itemsize": 2}
    found = serving(config, parse_topology("h100:1"), prompt=2, response=2, **options)
    states = 1000 * 2 * 3 * 64 * 128 * 128 * 4
    rest = 2 * (parameter_count(config)[0] - 4) + 1000 * 3 * 4
    assert found.decode.memory == pytest.approx((states + rest) / 3350e9)


def test_tensor_parallel_layers_send_their_activations_twice():
    found = serving(minimax_m2(), parse_topology("h100:8"), batch=64, weight_bytes=1)
    sent = 62 * 2 * (64 * 3072 * 2) * 2 * 7 / 8
    assert found.decode.network == pytest.approx(sent / (450e9 * 0.8))
    assert serving(qwen2_5_7b(), parse_topology("h100:1"), batch=1).decode.network == 0


def test_larger_batches_are_cheaper_and_slower():
    rows = [
        serving(minimax_m2(), parse_topology("h100:8"), batch=batch, weight_bytes=1)
        for batch in (1, 16, 128)
    ]
    prices = [row.dollars_out for row in rows]
    speeds = [row.tokens_per_second_per_row for row in rows]
    assert prices == sorted(prices, reverse=True) and speeds == sorted(speeds, reverse=True)


def test_what_does_not_fit_is_refused_with_what_does():
    with pytest.raises(UserError, match="take a larger slice"):
        serving(minimax_m2(), parse_topology("h100:4"), batch=1)
    with pytest.raises(UserError, match=r"at most (\d+) rows fit") as caught:
        serving(minimax_m2(), parse_topology("h100:8"), batch=4000, weight_bytes=1)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    serving(minimax_m2(), parse_topology("h100:8"), batch=most, weight_bytes=1)
    with pytest.raises(UserError):
        serving(minimax_m2(), parse_topology("h100:8"), batch=most + 1, weight_bytes=1)
