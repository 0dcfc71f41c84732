"""A process of a job that tells and is told by `mmrl.processes`, and prints what it has then."""

import json

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrl import config as configs
from mmrl import distributed
from mmrl.processes import any_process, everywhere, exchange, gather_rows, own_rows, share

ROWS = 7


def cut_rows(rows: int) -> jax.Array:
    """Row i is [i, 10 i], over the devices in the reverse of the processes' order."""
    whole = np.stack([np.arange(rows), 10 * np.arange(rows)], axis=1).astype(np.int32)
    mesh = Mesh(np.asarray(jax.devices()[::-1]), "all")
    sharding = NamedSharding(mesh, PartitionSpec("all"))
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def main(argv: list[str]) -> None:
    with distributed.job():
        process = jax.process_index()
        own = np.full((process, 2), process, np.float32)  # 0, 1 and 2 rows
        uneven = cut_rows(9)[:ROWS]
        found = {
            "share": list(share(ROWS)),
            "exchange": exchange({"text": "ü" * 10**process, "process": process, "third": 1 / 3}),
            "gather": gather_rows(own).tolist(),
            "own": own_rows({"rows": uneven, "host": np.arange(ROWS)}),
            "few": len(own_rows(uneven[:2])),
            "everywhere": everywhere((cut_rows(9), np.arange(3))),
            "any": [any_process(process == 1), any_process(False)],
        }
        print(flags.FLAGS.process_id, json.dumps(jax.tree.map(plain, found)), flush=True)


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


if __name__ == "__main__":
    configs.run(main)
