"""A process of a job that restores a run as the trainer does and writes its arrays to a file.

Flags: --config, --workdir and those of `mmrl.distributed`, as for the trainer, and --output.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags

from mmrl import config as configs
from mmrl import distributed
from mmrl.processes import everywhere
from mmrl.sharding import make_mesh
from mmrl.training.run import Run

_CONFIG = flags.DEFINE_string("config", None, "Config file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "An .npz file to write.", required=True)


def main(argv: list[str], overrides: dict[str, str]) -> None:
    with distributed.job():
        config = configs.override(configs.load(_CONFIG.value), overrides)
        with jax.set_mesh(make_mesh(config.mesh)):
            state = Run(config, Path(_WORKDIR.value)).state
            arrays = {
                jax.tree_util.keystr(path): everywhere(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(
                    (state.params, state.opt_state)
                )
            }
        if jax.process_index() == 0:
            np.savez(_OUTPUT.value, **arrays)


if __name__ == "__main__":
    configs.run(main, overrides=True)
