"""MiniMax-M2 in full (228.7B parameters, 9.8B active) with the recipe of `minimax_m1.py`.

Nobody has published a recipe for M2: all but the model is a choice. It needs a pod, the released
weights and their tokenizer; its model is what compile-only plans read.
"""

import dataclasses
import runpy
from pathlib import Path

from mmrl.plan.presets import minimax_m2
from mmrl.sharding import MeshConfig
from mmrl.training.config import TrainConfig


def get_config() -> TrainConfig:
    m1: TrainConfig = runpy.run_path(str(Path(__file__).with_name("minimax_m1.py")))["get_config"]()
    return dataclasses.replace(
        m1,
        model=minimax_m2(param_dtype="float32"),
        mesh=MeshConfig(data=1, fsdp=4, expert=16, tensor=8),
        # 62 layers of softmax attention remember eight times what M1's ten do.
        cache_memory_fraction=0.5,
    )
