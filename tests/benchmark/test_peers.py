"""The table of peers runs their scripts with the workload's sizes and takes medians of turns."""

import json
import sys

import pytest

from mmrl.benchmark import peers
from mmrl.errors import UserError

PRINTS = """
import json, pathlib, sys
turns = pathlib.Path(__file__).with_suffix(".turns")
turn = len(turns.read_text()) if turns.exists() else 0
turns.write_text("x" * (turn + 1))
if "--fail" in sys.argv: sys.exit("no model fits")
step = SECONDS[turn]
print("noise")
print(json.dumps(dict(step_s=step, all=[9.0, step], tokens_per_s=8192 / step, peak_rss_mb=100)))
"""


def script(folder, name: str, seconds: list[float]) -> str:
    path = folder / name
    path.write_text(PRINTS.replace("SECONDS", json.dumps(seconds)))
    return str(path)


def test_ratios_are_of_medians_and_ranges_of_all_steps_but_each_first(tmp_path):
    ours = [sys.executable, script(tmp_path, "ours.py", [2.0, 3.0, 1.0, 2.0, 4.0, 7.0])]
    script(tmp_path, "trl_step.py", [6.0, 5.0, 8.0])
    table = peers.table(ours, str(tmp_path), {"trl": sys.executable}, ["A"], rounds=3, steps=2)
    assert table.splitlines()[2:] == [
        "| A | mmrl | 2.00 (1.00 to 4.00) | 1.00 | 4,096 | 100 |",
        "| A | mmrl, large pages | 3.00 (2.00 to 7.00) | 1.50 | 2,731 | 100 |",
        "| A | trl | 6.00 (5.00 to 8.00) | 3.00 | 1,365 | 100 |",
    ]


def test_a_script_that_fails_is_named_with_its_reason(tmp_path):
    command = [sys.executable, script(tmp_path, "trl_step.py", [1.0]), "--fail"]
    with pytest.raises(UserError, match="trl_step.py --fail failed: no model fits"):
        peers.measure(command)


def test_each_framework_gets_the_sizes_of_the_workload(tmp_path):
    flags = peers.command("tunix", "python", str(tmp_path), "B", 4)[2:]
    sizes = dict(zip(flags[::2], flags[1::2], strict=True))
    assert sizes == {
        "--steps": "4",
        "--prompts": "1",
        "--samples": "8",
        "--plen": "64",
        "--new": "448",
    }
    with_random_ends = peers.command("trl", "python", str(tmp_path), "C", 4)
    assert with_random_ends[1:4] == [str(peers.RANDOM_ENDS), "8", str(tmp_path / "trl_step.py")]
