"""The copy task by one dense layer: little to compile, where each of several processes does."""

import runpy
from dataclasses import replace
from pathlib import Path

from mmrl.training.config import TrainConfig


def get_config() -> TrainConfig:
    config = runpy.run_path(str(Path(__file__).with_name("copy_letter.py")))["get_config"]()
    model = replace(config.model, num_layers=1, layer_pattern=("softmax",), num_experts=0)
    return replace(config, model=model)
