"""Curriculum: which prompts are drawn by their pass rates, and what mixes in when."""

import json
from collections import Counter

import numpy as np
import pytest

from mmrl.data import DataConfig, Example
from mmrl.data.curriculum import CurriculumConfig, DataPart, PassRates, prompt_id
from mmrl.data.prompts import PromptStream
from mmrl.errors import UserError


def source(path, prefix: str, rows: int = 12) -> DataConfig:
    path.write_text("".join(json.dumps({"input": f"{prefix}{i}"}) + "\n" for i in range(rows)))
    return DataConfig(source=str(path))


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [(0.0, 0.9, "5"), (None, 0.9, "05"), (0.0, None, "59"), (None, None, "059")],
)
def test_prompts_outside_the_bounds_are_passed_over_once_measured(low, high, kept):
    """M1's filter is (0, 0.9): never solved and 9 of 10 are both out."""
    config = CurriculumConfig(low, high, after=10, forget=1.0, revisit=0.0)
    rates = PassRates(config)
    rates.observe((name, [1.0] * int(name) + [0.0] * (9 - int(name))) for name in "059")
    assert all(rates.admits(name, draw=1) for name in "059")  # nine responses are too few
    rates = PassRates(config, json.loads(json.dumps(rates.state())))
    rates.observe((name, [0.0]) for name in "059")
    assert "".join(name for name in "059" if rates.admits(name, draw=1)) == kept
    assert rates.admits("never seen", draw=1)


def test_earlier_responses_fade():
    rates = PassRates(CurriculumConfig(high=0.9, forget=0.5, after=4))
    for solved in ([0.0] * 4, [1.0] * 4, [1.0] * 4):
        rates.observe([("a", solved)])
    assert rates.rate("a") == pytest.approx((4 + 2) / (4 + 2 + 1))


def test_a_share_of_the_passed_over_is_measured_again():
    rates = PassRates(CurriculumConfig(high=0.9, revisit=0.25, after=1))
    rates.observe([("a", [1.0])])
    again = np.mean([rates.admits("a", draw) for draw in range(4000)])
    assert again == pytest.approx(0.25, abs=0.03)
    assert rates.metrics() == {"curriculum/measured": 1, "curriculum/passed_over": 1.0}


def test_a_prompt_has_the_same_id_in_every_order_and_another_label_another():
    one = prompt_id(Example("1+1", label=2, metadata={"a": 1}))
    assert one == prompt_id(Example("1+1", label=2)) and len(one) == 16
    assert one != prompt_id(Example("1+1", label=3)) != prompt_id(Example("1+2", label=3))


def test_solved_prompts_are_not_drawn_and_the_rest_come_in_their_order(tmp_path):
    data = source(tmp_path / "a.jsonl", "a")
    curriculum = CurriculumConfig(high=0.9, after=2, revisit=0.0)
    plain = PromptStream(data, prompts=4)
    order = [example.prompt for _ in range(6) for example in plain.draw(1)]
    stream = PromptStream(data, curriculum=curriculum, prompts=4)
    solved = {"a3", "a7", "a8"}
    ids = [prompt_id(Example(prompt)) for prompt in sorted(solved)]
    stream.pass_rates.observe((name, [1.0, 1.0]) for name in ids)
    drawn = [example.prompt for _ in range(4) for example in stream.draw(1)]
    assert drawn == [prompt for prompt in order if prompt not in solved][:16]


def test_a_stream_continues_exactly_from_its_state(tmp_path):
    data, further = source(tmp_path / "a.jsonl", "a"), source(tmp_path / "b.jsonl", "b")
    arguments = dict(
        parts=[DataPart(further, weight=0.7)],
        curriculum=CurriculumConfig(high=0.9, after=1),
        prompts=5,
        places=True,
    )
    stream = PromptStream(data, **arguments)
    for step in range(3):
        stream.pass_rates.observe([(e.metadata["prompt_id"], [1.0]) for e in stream.draw(step)[:2]])
    state = json.loads(json.dumps(stream.get_state()))
    other = PromptStream(data, **arguments)
    other.set_state(state)
    for step in range(3, 8):
        assert other.draw(step) == stream.draw(step)


def test_examples_are_found_again_by_their_places_and_the_stream_stays(tmp_path):
    stream = PromptStream(
        source(tmp_path / "a.jsonl", "a"),
        [DataPart(source(tmp_path / "b.jsonl", "b", 7))],
        prompts=5,
        places=True,
    )
    drawn = [example for _ in range(4) for example in stream.draw(0)]
    state = stream.get_state()
    wanted = drawn[::-3]
    places = json.loads(json.dumps([example.metadata["place"] for example in wanted]))
    assert stream.at(places) == wanted
    assert stream.get_state() == state


def test_parts_come_in_by_a_ramp_of_their_weights(tmp_path):
    """Weight 1 against 1 from step 20 on is half; at step 15 of 10 to 20 it is 0.5 / 1.5."""
    data, further = source(tmp_path / "a.jsonl", "a"), source(tmp_path / "b.jsonl", "b")
    part = DataPart(further, weight=1.0, begins=10, full=20)
    stream = PromptStream(data, [part], prompts=600)

    def share(step: int) -> float:
        counts = Counter(example.prompt[0] for example in stream.draw(step))
        return counts["b"] / 600

    assert [share(0), share(10)] == [0, 0]
    assert share(15) == pytest.approx(1 / 3, abs=0.07)
    assert share(20) == pytest.approx(1 / 2, abs=0.07) == share(20)


def test_processes_draw_parts_of_one_batch(tmp_path):
    data, further = source(tmp_path / "a.jsonl", "a"), source(tmp_path / "b.jsonl", "b")
    arguments = dict(parts=[DataPart(further)], prompts=6)
    whole = PromptStream(data, **arguments).draw(0)
    both = [
        PromptStream(data, process_index=i, process_count=2, **arguments).draw(0) for i in (0, 1)
    ]
    assert [e.metadata["part"] for part in both for e in part] == [
        e.metadata["part"] for e in whole
    ]
    assert len({e.prompt for part in both for e in part}) == 6


def test_a_curriculum_that_leaves_nothing_says_so(tmp_path):
    stream = PromptStream(
        source(tmp_path / "a.jsonl", "a", 2),
        curriculum=CurriculumConfig(high=0.9, after=1, revisit=0.0),
        prompts=2,
    )
    stream.pass_rates.observe((prompt_id(Example(f"a{i}")), [1.0]) for i in range(2))
    with pytest.raises(UserError, match="passed over 10000 prompts in a row"):
        stream.draw(0)
