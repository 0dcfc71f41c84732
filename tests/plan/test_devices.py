"""Slices as users name them, and the figures of their chips."""

import math

import pytest

from mmrl.chips import CHIPS, chip_of
from mmrl.errors import UserError
from mmrl.plan.devices import parse_topology, slices


@pytest.mark.parametrize(
    "text, count, shape, platform, name, hosts",
    [
        ("v5p:8x8x8", 512, (8, 8, 8), "tpu", "v5p:8x8x8", 128),
        ("v5e:4x4", 16, (4, 4), "tpu", "v5e:4x4", 2),
        ("v6e:16x16", 256, (16, 16), "tpu", "v6e:16x16", 32),
        ("V6E:2x4 ", 8, (2, 4), "tpu", "v6e:2x4", 1),
        ("v4:2x2x1", 4, (2, 2, 1), "tpu", "v4:2x2x1", 1),
        ("h100:64", 64, (8, 8), "gpu", "1x8x8", 8),
        ("h100:8", 8, (1, 8), "gpu", "1x1x8", 1),
        ("a100-80g:2", 2, (1, 2), "gpu", "1x1x2", 1),
    ],
)
def test_a_slice_is_read(text, count, shape, platform, name, hosts):
    topology = parse_topology(text)
    found = (topology.count, topology.shape, topology.platform, topology.name, topology.hosts)
    assert found == (count, shape, platform, name, hosts)
    assert parse_topology(topology.label) == topology


@pytest.mark.parametrize(
    "text, remedy",
    [
        ("v5x:8x8", "Did you mean v5"),
        ("h1000:8", "Did you mean h100?"),
        ("h100:12", "Did you mean h100:16?"),
        ("h100:0", "Did you mean h100:8?"),
        ("h100:8x8", "Did you mean h100:64?"),
        ("v5p:8x8", "Did you mean v5p:4x4x4?"),
        ("v5p:8x4x4", "Did you mean v5p:4x4x8?"),
        ("v5p:6x6x6", "v5p:4x4x12?"),
        ("v5e:16", "Did you mean v5e:4x4?"),
        ("v6e:16x32", "Did you mean v6e:16x16?"),
        ("v6e:-2x4", "as in v6e:8x8"),
        ("h100", "as in h100:64"),
        ("", "expected one of v4, v5e, v5p, v6e"),
    ],
)
def test_what_is_no_slice_is_refused_in_one_line_with_the_nearest(text, remedy):
    with pytest.raises(UserError) as caught:
        parse_topology(text)
    assert remedy in str(caught.value) and repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_figures_of_pods_follow_from_those_of_chips():
    # Peak FLOP/s and data-center bandwidth of whole pods, and all-reduce bandwidth of v5e's: pages
    # cloud.google.com/tpu/docs/v4, v5e, v6e.
    assert 4096 * CHIPS["v4"].peak_bfloat16 == pytest.approx(1.1e18, rel=0.03)
    assert 256 * CHIPS["v5e"].peak_bfloat16 == pytest.approx(50.63e15, rel=0.01)
    assert 256 * CHIPS["v6e"].peak_bfloat16 == pytest.approx(234.9e15, rel=0.01)
    assert 256 * CHIPS["v5e"].host_bandwidth == 6.4e12 / 8
    assert 256 * CHIPS["v5e"].link_bandwidth == 51.2e12


@pytest.mark.parametrize(
    "kind, name",
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H200", "h200")],
)
def test_chips_are_found_by_the_names_that_devices_give(kind, name):
    assert chip_of(kind) is CHIPS[name]
    assert chip_of("cpu") is None


def test_slices_of_a_chip_are_those_that_can_be_asked_for():
    for chip in CHIPS.values():
        found = slices(chip)
        assert all(parse_topology(topology.label) == topology for topology in found)
        assert len({topology.count for topology in found}) > 5


def test_a_cpu_is_cut_into_devices_that_share_its_memory():
    one, four = parse_topology("cpu:1"), parse_topology("cpu:4")
    assert (four.count, four.platform, four.label) == (4, "cpu", "cpu:4")
    assert four.chip.hbm_bytes == one.chip.hbm_bytes / 4
    with pytest.raises(UserError, match="cpu:8"):
        parse_topology("cpu:4x4")


def test_collectives_use_the_links_that_their_group_has():
    assert parse_topology("h100:64").bandwidth(8) == 450e9
    assert parse_topology("h100:64").bandwidth() == 50e9
    # Two links of 100 GB/s an axis of the 3D torus, three axes, rings where 4 divides the side.
    pod = parse_topology("v5p:8x8x8")
    assert [pod.bandwidth(group) for group in (4, 8, 64, 512)] == [2e11, 2e11, 4e11, 6e11]
    # Without the wrap-around of 16 chips an axis is a line: one of its two directions at a time.
    assert parse_topology("v5e:4x4").bandwidth() == 100e9
    assert parse_topology("v5e:16x16").bandwidth() == 200e9
    assert parse_topology("v5e:1x1").bandwidth() == math.inf
