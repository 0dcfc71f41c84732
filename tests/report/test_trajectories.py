"""Segments, parts and calls of a rollout row, against the texts that the row was made of."""

import random

import pytest
from agent_rows import CALLS, episode_row, four_turns, long_episode, words
from hypothesis import given
from hypothesis import strategies as st

from mmrl.report import trajectories
from mmrl.report.trajectories import read_turn, segments, shown_prompt


def parts_of(segment):
    """{kind: text} of a segment whose kinds are all different, and the order of the kinds."""
    start, found = 0, []
    for kind, end in segment["parts"]:
        found.append((kind, "".join(segment["tokens"][start:end])))
        start = end
    assert start == len(segment["tokens"])
    return found


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_segments_are_the_runs_of_the_mask_and_hold_every_token_once(mask):
    tokens = [f"t{i}" for i in range(len(mask))]
    row = {"response_tokens": tokens, "logprobs": [-i / 8 for i in range(len(mask))], "mask": mask}
    found = segments(row)
    assert [token for segment in found for token in segment["tokens"]] == tokens
    if any(mask):
        assert [int(s["drawn"]) for s in found for _ in s["tokens"]] == mask
    assert all(a["drawn"] != b["drawn"] for a, b in zip(found, found[1:], strict=False))
    for segment in found:
        end = segment["start"] + segment["length"]
        assert tokens[segment["start"] : end] == segment["tokens"]
        if segment["drawn"]:
            assert segment["logprobs"] == pytest.approx(
                row["logprobs"][segment["start"] : end], abs=1e-3
            )


@pytest.mark.parametrize("family", CALLS)
def test_turn_is_cut_into_reasoning_text_and_calls_of_its_family(family):
    first, tool, second, _, third, _, answer = segments(four_turns(family))
    thinking, *others = parts_of(first)
    assert thinking[0] == "thinking"
    assert thinking[1].startswith("<think>")
    assert thinking[1].rstrip().endswith("</think>")
    called = [text for kind, text in others if kind == "call"]
    assert len(called) == 1
    assert CALLS[family] in called[0]
    assert [call["name"] for call in first["calls"]] == ["python"]
    assert first["calls"][0]["arguments"]["code"].startswith(
        "print(7)" if family == "m2" else "total = 0\nfor"
    )
    assert [list(call) for call in second["calls"]] == [["error"]]
    assert third["calls"] == first["calls"]
    assert parts_of(answer)[0][0] == "text"
    assert "calls" not in answer
    assert "parts" not in tool


@given(st.text(alphabet="<>/thinktool_cal{}\"' \n|é🙂", max_size=60), st.integers(0, 9))
def test_whatever_the_model_says_its_parts_cover_it_in_order(text, seed):
    cut = random.Random(seed)
    tokens = []
    while text:
        size = cut.randint(1, 4)
        tokens.append(text[:size])
        text = text[size:]
    spans, _ = read_turn(tokens)
    bounds = [0, *(end for _, _, end in spans)]
    assert [start for _, start, _ in spans] == bounds[:-1]
    assert bounds[-1] == len(tokens)
    assert bounds == sorted(set(bounds))


def test_reasoning_that_the_prompt_opened_ends_where_the_model_closes_it():
    spans, _ = read_turn(words("I add them.\n</think>\n\nIt is 3."))
    assert [kind for kind, _, _ in spans] == ["thinking", "text"]


def test_an_answer_in_json_is_no_call():
    assert read_turn(words('{"total": 3}')) == ([("text", 0, 7)], [])


def test_long_segment_loses_its_middle_and_says_where(monkeypatch):
    monkeypatch.setattr(trajectories, "MAX_TOKENS", 4)
    row = episode_row([("abc", True)]) | {
        "response_tokens": list("abcdefghXYabcd"),
        "logprobs": [-0.1 * i for i in range(14)],
        "mask": [1] * 8 + [0] * 2 + [1] * 4,
    }
    cut, back, whole = segments(row)
    assert (cut["tokens"], cut["cut_at"], cut["length"]) == (list("abgh"), 2, 8)
    assert cut["logprobs"] == [0.0, -0.1, -0.6, -0.7]
    assert cut["parts"] == [["text", 4]]
    assert (back["tokens"], back["start"]) == (["X", "Y"], 8)
    assert (whole["tokens"], whole["start"], whole["length"]) == (list("abcd"), 10, 4)
    assert "cut_at" not in whole


def test_parts_of_a_turn_that_lost_its_middle_end_where_their_tokens_do(monkeypatch):
    monkeypatch.setattr(trajectories, "MAX_TOKENS", 6)
    tokens = ["<think>", "a", "b", "c", "</think>", "d", "e", "f", "g", "h"]
    row = {"response_tokens": tokens, "logprobs": [0.0] * 10}
    (segment,) = segments(row)
    assert segment["tokens"] == ["<think>", "a", "b", "f", "g", "h"]
    assert segment["parts"] == [["thinking", 3], ["text", 6]]
    call = ["a", "b", "c", "<tool_call>", "{}", "</tool_call>", "d", "e", "f", "g"]
    (segment,) = segments(row | {"response_tokens": call})
    assert segment["parts"] == [["text", 3], ["text", 6]]
    assert "error" in segment["calls"][0]


def test_episode_beyond_the_limit_keeps_every_turn(monkeypatch):
    assert not any("cut_at" in s for s in segments(long_episode(turns=50, tokens=8192)))
    monkeypatch.setattr(trajectories, "MAX_EPISODE_TOKENS", 1000)
    found = segments(long_episode(turns=50, tokens=8192))
    assert sum(segment["drawn"] for segment in found) == 50
    assert sum(len(segment["tokens"]) for segment in found) <= 1000
    assert all("cut_at" in segment for segment in found)


def test_prompt_is_text_or_messages_with_tools(monkeypatch):
    assert shown_prompt("2 + 2 =", None) == "2 + 2 ="
    parts = [{"type": "text", "text": "é?"}, {"type": "text", "text": "b"}]
    call = {"function": {"name": "f", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    tool = {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": {}}}
    shown = shown_prompt(chat, [tool])
    assert shown["messages"][0] == {"role": "user", "text": "é?\nb"}
    assert '"tool_calls"' in shown["messages"][1]["text"]
    assert shown["tools"] == [{"name": "f", "description": "Does.", "parameters": "{}"}]
    assert shown_prompt("2 + 2 =", [tool])["messages"] == [{"role": "", "text": "2 + 2 ="}]
    assert '"strange"' in shown_prompt([{"strange": 1}], None)
    for strange in ("strange", {"function": "strange"}, {"function": None}, 3):
        assert shown_prompt("a", [strange])["tools"][0]["name"] == "?"
    assert shown_prompt("a", {"strange": 1}) == "a"
    monkeypatch.setattr(trajectories, "MAX_PROMPT", 100)
    assert shown_prompt("a" * 60 + "b" * 60, None) == "a" * 50 + " […] " + "b" * 50
