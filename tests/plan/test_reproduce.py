"""The report's figures against the published ones, and the plot."""

import json
import sys

import pytest

from mmrl.errors import UserError
from mmrl.plan import reproduce


def test_the_report_states_the_published_figures():
    text = reproduce.report()
    for figure in (
        "456,089,655,296",
        "45,944,920,064",
        "912,210,767,872",
        "228,689,764,864",
        "7,615,616,512",
        "258,048 GPU-hours",
        "$2.0721",
        "21.76 days",
        "$516,096",
    ):
        assert figure in text
    (line,) = [line for line in text.splitlines() if line.startswith("  figure  ")]
    assert line.split()[1:5] == ["0.584", "0.385", "0.292", "0.244"]
    assert "assumed: 50% of peak" in text


def test_the_facts_are_plain_numbers():
    facts = json.loads(json.dumps(reproduce.facts()))
    assert facts["list_prices"]["MiniMax-M2's list"] == [0.30, 1.20]
    assert facts["training"]["dollars_per_gpu_hour"] == pytest.approx(534_700 / (512 * 21 * 24))
    assert {row["model"] for row in facts["serving"]} == {"minimax_m1", "minimax_m2"}


def test_the_plot_is_a_png(tmp_path):
    path = tmp_path / "flops.png"
    reproduce.plot(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install '\.\[plan\]'"):
        reproduce.plot(tmp_path / "flops.png")
