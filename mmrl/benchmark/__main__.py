"""Times mmrl on this machine, one JSON line or a table.

python -m mmrl.benchmark
python -m mmrl.benchmark --checkpoint=PATH --lengths= --contexts=64 --batch=1 --transformers
python -m mmrl.benchmark --suite=step --workload=A
python -m mmrl.benchmark --suite=peers --devices=2 --scripts=DIR --trl=PYTHON --tunix=PYTHON
python -m mmrl.benchmark --suite=hybrid --batch=8
python -m mmrl.benchmark --suite=growth
python -m mmrl.benchmark --suite=agreement --new_tokens=512
"""

import json
import sys
from pathlib import Path

from absl import flags

from mmrl import config as configs
from mmrl.benchmark import agreement, growth, model, peers, workload
from mmrl.compilation import enable_compilation_cache
from mmrl.errors import UserError

_SUITE = flags.DEFINE_enum(
    "suite",
    "model",
    ["model", "step", "peers", "hybrid", "growth", "agreement"],
    "model: forward passes and decoding. step: RL steps of a workload. peers: the same beside "
    "other frameworks. hybrid: decoding at a long context beside an all-softmax twin. growth: how "
    "a step's time grows with its sizes. agreement: the sampler's log-probabilities against the "
    "trainer's.",
)
_LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096", "16384"], "Tokens of the forward passes.")
_CONTEXTS = flags.DEFINE_list("contexts", ["64", "2048"], "Tokens before the decoded ones.")
_BATCH = flags.DEFINE_integer("batch", 16, "Rows that decode together.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens to decode.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs a figure is the median of.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Times this model [random weights].")
_TRANSFORMERS = flags.DEFINE_boolean(
    "transformers", False, "Times generate() of transformers on the checkpoint as well."
)
_LIGHTNING_ONLY = flags.DEFINE_boolean("lightning_only", False, "Leave the softmax layer out.")
_WORKLOAD = flags.DEFINE_enum("workload", "A", [*workload.WORKLOADS], "Of --suite=step.")
_STEPS = flags.DEFINE_integer("steps", 6, "RL steps, the first of which compiles.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices", 1, "CPU devices that share the prompts of --suite=step or peers.", lower_bound=1
)
_SCRIPTS = flags.DEFINE_string("scripts", None, "Folder of trl_step.py and tunix_step.py.")
_PYTHONS = {
    name: flags.DEFINE_string(name, None, f"Python of an environment with {name}.")
    for name in peers.SCRIPTS
}
_WORKLOADS = flags.DEFINE_list("workloads", [*workload.WORKLOADS], "Of --suite=peers.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Turns that each framework takes.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Writes the peers' table there, as Markdown.")


def model_figures() -> dict[str, float]:
    if _TRANSFORMERS.value and _CHECKPOINT.value is None:
        raise UserError("--transformers needs a --checkpoint that both can load")
    return model.figures(
        model.timed_model(_CHECKPOINT.value, _LIGHTNING_ONLY.value),
        [*map(int, _LENGTHS.value)],
        [*map(int, _CONTEXTS.value)],
        _BATCH.value,
        _NEW_TOKENS.value,
        _REPEATS.value,
        _CHECKPOINT.value if _TRANSFORMERS.value else None,
    )


def peers_table() -> str:
    pythons = {name: flag.value for name, flag in _PYTHONS.items() if flag.value}
    if pythons and not _SCRIPTS.value:
        raise UserError("--trl and --tunix need --scripts, the folder of the peers' scripts")
    ours = [sys.executable, "-m", "mmrl.benchmark", "--suite=step", f"--devices={_DEVICES.value}"]
    return peers.table(ours, _SCRIPTS.value, pythons, _WORKLOADS.value, _ROUNDS.value, _STEPS.value)


def main(_: list[str]) -> None:
    enable_compilation_cache()
    if _SUITE.value == "peers":
        text = peers_table()
        if _OUTPUT.value:
            Path(_OUTPUT.value).write_text(text)
        print(text)
        return
    found = {
        "model": model_figures,
        "step": lambda: workload.figures(
            workload.WORKLOADS[_WORKLOAD.value], _STEPS.value, _DEVICES.value
        ),
        "hybrid": lambda: growth.hybrid(_BATCH.value, _NEW_TOKENS.value, _REPEATS.value),
        "growth": lambda: growth.exponents(_STEPS.value),
        "agreement": lambda: agreement.figures(_NEW_TOKENS.value),
    }[_SUITE.value]()
    print(json.dumps(found))


if __name__ == "__main__":
    configs.run(main)
