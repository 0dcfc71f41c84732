"""Plans a run before it: bytes, seconds and dollars on a slice that is not there.

python -m mmrl.plan --config=configs/minimax_m1.py --topology=v5p:8x8x8
python -m mmrl.plan --config=configs/qwen2_5_7b.py --topology=h100:8 --search
python -m mmrl.plan --reproduce --plot=costs.png
python -m mmrl.plan --calibrate
"""

import json
from typing import Any

from absl import flags, logging

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.plan import calibration, report, reproduce, search
from mmrl.plan.devices import Topology, parse_topology
from mmrl.plan.predict import make_plan
from mmrl.training.config import TrainConfig

_CONFIG = flags.DEFINE_string("config", None, "Config file: Python with get_config().")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Slice to plan for: v5e:4x4, v5p:8x8x8, v6e:16x16, h100:64, cpu:8."
)
_JSON = flags.DEFINE_boolean("json", False, "Print JSON in place of a table.")
_STEPS = flags.DEFINE_integer("steps", None, "RL steps to price; default: the config's.")
_PRICE = flags.DEFINE_float(
    "price_per_device_hour", None, "Dollars of a device and hour; default: a list price."
)
_COMPILE = flags.DEFINE_boolean(
    "compile", True, "Compile the programs; without, memory and traffic are arithmetic too."
)
_SEARCH = flags.DEFINE_boolean(
    "search", False, "Look for the mesh, remat policy and batches of the cheapest step that fits."
)
_BUDGET = flags.DEFINE_float(
    "budget", None, "With --search: dollars an hour; the slice may be any of the chip's within it."
)
_COMPILATIONS = flags.DEFINE_integer("compilations", 3, "With --search: how many are compiled.")
_REPRODUCE = flags.DEFINE_boolean(
    "reproduce", False, "Published sizes, FLOPs and prices, computed again."
)
_PLOT = flags.DEFINE_string("plot", None, "With --reproduce: draw its curves into this PNG.")
_CALIBRATE = flags.DEFINE_boolean(
    "calibrate", False, "Predicted against measured steps and memory on this machine's CPU."
)


def main(argv: list[str], overrides: dict[str, str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --config.{argv[1]}")
    logging.set_verbosity(logging.ERROR)  # the report says what is not cut
    if _REPRODUCE.value:
        if _PLOT.value:
            reproduce.plot(_PLOT.value)
        _print(reproduce.facts(), reproduce.report)
    elif _CALIBRATE.value:
        rows = calibration.calibrate()
        _print(calibration.facts(rows), lambda: calibration.table(rows))
    else:
        _plan(_config(overrides), _topology())


def _plan(config: TrainConfig, topology: Topology) -> None:
    price = _PRICE.value
    if _SEARCH.value:
        found = search.search(
            config,
            topology,
            budget_per_hour=_BUDGET.value,
            dollars_per_hour=price,
            compilations=_COMPILATIONS.value if _COMPILE.value else 0,
        )
        _print(search.facts(found), lambda: search.table(found))
        return
    plan = make_plan(
        config, topology, steps=_STEPS.value, dollars_per_hour=price, compiled=_COMPILE.value
    )
    facts = report.facts(plan)
    _print(facts, lambda: report.table(facts))


def _config(overrides: dict[str, str]) -> TrainConfig:
    if _CONFIG.value is None:
        raise UserError("--config=FILE is missing: a Python file with get_config()")
    config = configs.override(configs.load(_CONFIG.value), overrides)
    if not isinstance(config, TrainConfig):
        raise UserError(f"{_CONFIG.value}: get_config() must return a TrainConfig")
    return config


def _topology() -> Topology:
    if _TOPOLOGY.value is None:
        raise UserError("--topology is missing: v5e:4x4, v5p:8x8x8, v6e:16x16, h100:64 or cpu:8")
    topology = parse_topology(_TOPOLOGY.value)
    return calibration.measured(topology) if topology.platform == "cpu" else topology


def _print(facts: Any, text) -> None:
    print(json.dumps(facts, indent=2) if _JSON.value else text())


if __name__ == "__main__":
    configs.run(main, overrides=True)
