"""MiniMax-M1's update from shapes alone: lowering costs the same for 8 layers as for 80."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from mmrl import config as configs
from mmrl.plan.programs import lower
from mmrl.sharding import MeshConfig, make_mesh

CONFIG = Path(__file__).parents[2] / "configs" / "minimax_m1.py"


@pytest.mark.slow
def test_the_update_of_minimax_m1_lowers_to_a_program_that_depth_does_not_grow():
    """One group of 8 layers is in it, and a loop over the groups."""
    config = configs.load(CONFIG)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices()[:8])
    sizes = {}
    for layers in (8, 80):
        changed = replace(config, model=replace(config.model, num_layers=layers))
        lowered = lower("update", changed, mesh)
        assert lowered is not None
        sizes[layers] = len(lowered.as_text().splitlines())
    assert 1000 < sizes[80] < 1.05 * sizes[8]
