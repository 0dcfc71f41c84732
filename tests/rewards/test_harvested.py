"""Harvested rows: each is judged by the verifier that it names, of a fixed list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data import Sample, Status
from mmrl.rewards import score as score_all
from mmrl.rewards.harvested import COMPARE, GRADE, MATHS, STATED, TOOL_CALLS, VERIFIERS, score

TOOL = {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}


def sample(verifier, response, label, status=Status.COMPLETED) -> Sample:
    metadata = {"verifier": verifier, "tools": [TOOL]}
    return Sample(response=response, label=label, metadata=metadata, status=status)


def test_a_mixed_batch_is_judged_row_by_row():
    rows = [
        sample(MATHS, r"It is \boxed{1/2}.", "0.5"),
        sample(MATHS, "It is 3.", "0.5"),
        sample(STATED, "That is Paris.", "paris"),
        sample(STATED, "That is Lyon.", "paris"),
        sample(TOOL_CALLS, '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', "any"),
        sample(TOOL_CALLS, "f(1)", "any"),
    ]
    results = score_all(rows, score)
    assert [result.error for result in results] == [None] * 6
    assert [result.value for result in results] == [1, 0, 1, 0, 1, 0]


@given(st.one_of(st.none(), st.integers(), st.text(), st.just("os:system"), st.just(["x"])))
def test_a_row_cannot_name_other_code(verifier):
    assert verifier not in VERIFIERS
    with pytest.raises(ValueError, match="is none of mmrl.rewards"):
        score(sample(verifier, "a", "a"))


@pytest.mark.parametrize(
    ("response", "status", "right"),
    [
        ("Paris", Status.COMPLETED, 1),
        ("<think>Lyon?</think>The capital is **Paris**.\n", Status.COMPLETED, 1),
        ("the capital is  PARIS!", Status.COMPLETED, 1),
        ("Paris or Lyon", Status.COMPLETED, 0),
        ("<think>Paris", Status.TRUNCATED, 0),
        ("Comparis", Status.COMPLETED, 0),
        ("", Status.COMPLETED, 0),
    ],
)
def test_a_stated_answer_is_the_last_words_of_a_complete_response(response, status, right):
    assert score(sample(STATED, response, "Paris", status)) == {"reward": right, "solved": right}


@pytest.mark.parametrize("verifier", [GRADE, COMPARE])
def test_a_judge_is_named_by_the_environment_and_never_by_the_row(verifier, monkeypatch):
    asked = []

    async def judge(sample, **settings):
        asked.append(settings)
        return 1.0

    monkeypatch.setattr(verifier.replace(":", "."), judge)
    row = sample(verifier, "a", "a")
    row.metadata |= {
        "url": "http://elsewhere.example",
        "judge": {"url": "http://elsewhere.example"},
    }
    monkeypatch.delenv("MMRL_JUDGE_URL", raising=False)
    [result] = score_all([row], score)
    assert "MMRL_JUDGE_URL" in result.error and not asked
    monkeypatch.setenv("MMRL_JUDGE_URL", "http://judge.example/v1")
    monkeypatch.setenv("MMRL_JUDGE_MODEL", "big")
    assert score_all([row], score)[0].value == 1
    assert asked == [{"url": "http://judge.example/v1", "model": "big", "key_variable": None}]
