"""Seconds and dollars against hand arithmetic."""

import pytest

from mmrl.plan.devices import parse_topology
from mmrl.plan.roofline import (
    Efficiency,
    Phase,
    Transfer,
    all_gather_sent,
    cost,
    device_dollars,
    times,
)

H100S = parse_topology("h100:16")
EVERYTHING = Efficiency(compute=1.0, memory=1.0, network=1.0)


def test_a_phase_takes_as_long_as_its_slowest_resource():
    phase = Phase("p", flops=989e12, hbm_bytes=2 * 3350e9, sent=(Transfer(16, 150e9),))
    found = times(phase, H100S, EVERYTHING)
    assert (found.compute, found.memory, found.network) == pytest.approx((1.0, 2.0, 3.0))
    assert (found.seconds, found.bound) == (found.network, "network")
    in_a_host = times(Phase("p", 989e12, 2 * 3350e9, sent=(Transfer(8, 150e9),)), H100S, EVERYTHING)
    assert (in_a_host.seconds, in_a_host.bound) == (in_a_host.memory, "memory")


def test_efficiency_divides_each_resource():
    phase = Phase(
        "p", flops=989e12, hbm_bytes=3350e9, sent=(Transfer(16, 20e9), Transfer(8, 270e9))
    )
    found = times(phase, H100S, Efficiency(compute=0.5, memory=0.25, network=0.2))
    assert (found.compute, found.memory, found.network) == pytest.approx((2.0, 4.0, 5.0))


def test_products_at_highest_precision_have_their_own_peak():
    found = times(Phase("p", 989e12 + 67e12, 0, float32_flops=67e12), H100S, EVERYTHING)
    assert found.compute == pytest.approx(2.0)
    v5e = parse_topology("v5e:1x1")
    assert times(Phase("p", 197e12, 0, float32_flops=197e12), v5e, EVERYTHING).compute == (
        pytest.approx(6.0)
    )


def test_one_device_sends_nothing():
    assert (
        times(Phase("p", 0, 1, sent=(Transfer(1, 5.0, 3),)), parse_topology("v5e:1x1")).network == 0
    )


def test_a_run_costs_its_device_hours():
    phases = [Phase("a", flops=989e12, hbm_bytes=0), Phase("b", flops=0, hbm_bytes=3 * 3350e9)]
    found = cost(
        phases,
        H100S,
        tokens=6400,
        model_flops=16 * 2 * 989e12 / 4,
        steps=900,
        dollars_per_hour=2.5,
        efficiency=EVERYTHING,
    )
    assert found.step_seconds == pytest.approx(4.0)
    assert found.tokens_per_second_per_device == pytest.approx(6400 / 4 / 16)
    assert found.mfu == pytest.approx(1 / 8)
    assert found.device_hours == pytest.approx(16.0)
    assert found.dollars == pytest.approx(40.0)


def test_the_price_is_the_chips_unless_given():
    phase = [Phase("a", flops=989e12 * 3600, hbm_bytes=0)]
    found = cost(phase, H100S, tokens=1, model_flops=1, efficiency=EVERYTHING)
    assert found.dollars == pytest.approx(16 * H100S.chip.dollars_per_hour)
    free = cost(phase, H100S, tokens=1, model_flops=1, dollars_per_hour=0.0)
    assert free.dollars == 0


def test_devices_are_paid_day_and_night():
    assert device_dollars(512, 21, 2.0) == 512 * 21 * 24 * 2


def test_an_all_gather_sends_every_part_but_its_own():
    held = {device: {device} for device in range(5)}
    sent = dict.fromkeys(range(5), 0)
    for _ in range(4):  # a ring: each passes on what it got last
        arriving = {d: max(held[d], key=lambda part, d=d: (d - part) % 5) for d in range(5)}
        for device, part in arriving.items():
            held[(device + 1) % 5].add(part)
            sent[device] += 10
    assert all(len(parts) == 5 for parts in held.values())
    assert set(sent.values()) == {all_gather_sent(50, 5)}


def test_neighbours_of_a_group_that_spans_hosts_use_the_network():
    near, far = Transfer(4, 450e9, span=8), Transfer(4, 450e9, span=16)
    seconds = [times(Phase("p", 0, 1, sent=(x,)), H100S, EVERYTHING).network for x in (near, far)]
    assert seconds == pytest.approx([1.0, 9.0])


def test_each_collective_takes_its_latency():
    phase = Phase("p", 0, 1, sent=(Transfer(8, 0.0, 1000), Transfer(1, 0.0, 1000)))
    assert times(phase, H100S, Efficiency(latency=1e-3)).network == pytest.approx(1.0)
