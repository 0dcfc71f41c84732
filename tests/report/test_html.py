"""The report is one self-contained page whose data are the run's, whatever text the run holds."""

import json
import math
from html.parser import HTMLParser

import pytest

from mmrl.errors import UserError
from mmrl.report import html as html_lib
from mmrl.report.html import render, report_data, sample_rollouts, write_report
from mmrl.report.metrics import MetricsWriter, rollout_files, write_rollouts

HOSTILE = (
    "</script><script>alert(1)</script><!-- ]]> <img src=x onerror='alert(2)'>"
    "\" ' & &lt; \u2028 é 漢 🙂 $TITLE $$ {{TITLE}}"
)


class Page(HTMLParser):
    """Collects tags, attributes, and the text inside each script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self.title = [], [], [], ""
        self.inside = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside == "title":
            self.title += data


def rollout(step, group=0, tokens=("4", "\n"), prompt="2 + 2 =", **more):
    row = {"step": step, "prompt": prompt, "response_tokens": list(tokens), "group": group}
    row |= {"logprobs": [-0.123456] * len(tokens), "reward": 1.0, "advantage": 0.5}
    return row | {"status": "completed", "label": "4"} | more


def make_run(workdir, steps=5, config=None):
    with MetricsWriter(workdir) as writer:
        for step in range(steps + 1):
            evaluation = {"eval/reward": 0.1 * step, "eval/solved": 0.0}
            supervised = {"loss/supervised": 1.0 / (step + 1), "time/step_seconds": 0.5}
            writer.write(step, evaluation | supervised, "warmstart")
        for step in range(1, steps + 1):
            reward = math.nan if step == 2 else step / 3
            writer.write(step, {"reward/mean": reward, "time/step_seconds": 2.0})
    if config:
        (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def page_of(workdir):
    return Page(write_report(workdir).read_text("utf-8"))


def test_page_needs_no_network_and_carries_the_run_as_json(tmp_path):
    config = {"model": {"num_layers": 2}}
    workdir = make_run(tmp_path / "my-run", config=config)
    write_rollouts(workdir, 3, [rollout(3)])
    page = page_of(workdir)
    outside = ("src", "href", "action", "data", "srcset", "poster")
    assert [a for a in page.attributes if a[1] in outside] == []
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert "http" not in "".join(page.scripts).replace("http://www.w3.org/2000/svg", "")
    data = json.loads(page.scripts[0])
    assert page.title == "my-run · mmrl"
    assert data["config"] == config
    assert data["seconds"] == 6 * 0.5 + 5 * 2.0
    assert data["phases"]["rl"]["step"] == [1, 2, 3, 4, 5]
    assert data["phases"]["rl"]["reward/mean"] == [0.33333, None, 1.0, 1.3333, 1.6667]
    assert data["phases"]["warmstart"]["loss/supervised"][1] == 0.5
    assert list(data["milestones"]) == ["before", "after warm start"]
    assert data["milestones"]["after warm start"]["step"] == 5
    (step,) = data["rollouts"]["steps"]
    (row,) = step["rows"]
    assert (step["step"], step["total"], row["length"]) == (3, 1, 2)
    (segment,) = row["segments"]
    assert segment["logprobs"] == [-0.123, -0.123]
    assert data["rollouts"]["prompts"][row["prompt"]] == "2 + 2 ="


def test_hostile_text_stays_data_wherever_it_stands(tmp_path):
    plain = page_of(make_run(tmp_path / "plain"))
    workdir = make_run(tmp_path / HOSTILE.replace("/", "_"), config={HOSTILE: HOSTILE})
    row = rollout(1, tokens=[HOSTILE, "</SCRIPT >"], prompt=HOSTILE, label=HOSTILE, status=HOSTILE)
    write_rollouts(workdir, 1, [row])
    page = page_of(workdir)
    assert page.tags == plain.tags
    assert page.scripts[1] == plain.scripts[1]
    assert page.title == f"{workdir.name} · mmrl"
    data = json.loads(page.scripts[0])
    assert data["config"] == {HOSTILE: HOSTILE}
    assert data["rollouts"]["prompts"] == [HOSTILE]
    kept = data["rollouts"]["steps"][0]["rows"][0]
    assert kept["segments"][0]["tokens"] == row["response_tokens"]
    assert (kept["label"], kept["status"]) == (HOSTILE, HOSTILE)


def test_scripts_never_put_text_on_the_page_as_markup():
    script = Page(render({"name": "run"})).scripts[1]
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_run_with_metrics_alone_has_a_report_and_a_run_without_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        write_report(tmp_path)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"reward/mean": 0.5})
    data = json.loads(page_of(tmp_path).scripts[0])
    assert data["config"] == {}
    assert data["milestones"] == {}
    assert data["rollouts"] == {"prompts": [], "steps": []}
    assert data["phases"]["warmstart"] == {"step": []}


def test_long_run_is_thinned_and_keeps_its_ends_and_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(html_lib, "MAX_POINTS", 11)
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 102):
            evaluation = {"eval/reward": 0.5} if step == 37 else {}
            writer.write(step, {"reward/mean": 0.1} | evaluation)
    columns = report_data(tmp_path)["phases"]["rl"]
    assert columns["step"] == [1, 11, 21, 31, 37, 41, 51, 61, 71, 81, 91, 101]
    assert columns["eval/reward"] == [None] * 4 + [0.5] + [None] * 7


def test_five_hundred_steps_with_long_rollouts_stay_under_three_megabytes(tmp_path):
    workdir = make_run(tmp_path, steps=500)
    for step in range(1, 501, 25):
        rows = [rollout(step, group, ["token "] * 2000) for group in range(16)]
        write_rollouts(workdir, step, rows)
    assert write_report(workdir).stat().st_size < 3_000_000


def test_sampled_steps_are_spread_over_the_run_and_each_shows_a_rollout(tmp_path, monkeypatch):
    monkeypatch.setattr(html_lib, "MAX_ROLLOUT_STEPS", 3)
    monkeypatch.setattr(html_lib, "MAX_ROLLOUT_BYTES", 10)
    for step in range(0, 101, 10):
        write_rollouts(tmp_path, step, [rollout(step), rollout(step)])
    steps = sample_rollouts(rollout_files(tmp_path))["steps"]
    assert [step["step"] for step in steps] == [0, 50, 100]
    assert [(len(step["rows"]), step["total"]) for step in steps] == [(1, 2)] * 3


def test_long_rollouts_leave_room_for_more_of_them_by_fewer_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(html_lib, "MAX_ROLLOUT_BYTES", 200_000)
    for step in range(24):
        write_rollouts(tmp_path, step, [rollout(step, tokens=["token "] * 400)] * 8)
    steps = sample_rollouts(rollout_files(tmp_path))["steps"]
    assert [step["step"] for step in steps] == [0, 5, 9, 14, 18, 23]
    assert all(len(step["rows"]) >= 3 for step in steps)


def test_a_sample_that_left_the_loss_is_told_from_one_in_it_also_in_older_files(tmp_path):
    rows = [
        rollout(1),
        rollout(1, mask=[1, 0]),
        rollout(1, mask=[1, 1], in_loss=False),
        rollout(1, mask=[0, 0], status="failed"),
    ]
    write_rollouts(tmp_path, 1, rows)
    shown = sample_rollouts(rollout_files(tmp_path))["steps"][0]["rows"]
    assert [row["in_loss"] for row in shown] == [True, True, False, False]
    assert [len(row["segments"]) for row in shown] == [1, 2, 1, 1]
    assert all(row["segments"][0]["drawn"] for row in shown)


def test_samples_of_a_group_share_one_copy_of_their_prompt(tmp_path):
    rows = [rollout(1, group, prompt=f"question {group}") for group in (0, 0, 0, 1, 1)]
    write_rollouts(tmp_path, 1, rows)
    sampled = sample_rollouts(rollout_files(tmp_path))
    assert sampled["prompts"] == ["question 0", "question 1"]
    assert [row["prompt"] for row in sampled["steps"][0]["rows"]] == [0, 0, 0, 1, 1]
