"""slime's --rm-type rewards, against values worked out by hand from their definitions."""

import pytest

from mmrl.data import Sample
from mmrl.errors import UserError
from mmrl.rewards import resolve
from mmrl.rewards.slime_types import TYPES, find_type


def reward(kind, response, label, **metadata) -> float:
    function = resolve(f"mmrl.rewards.slime_types:{kind}")
    return function(Sample(response=response, label=label, metadata=metadata))


@pytest.mark.parametrize(
    "response, label, expected",
    [
        (r"so \boxed{1/2}", "0.5", 1.0),
        ("so 1/2", "0.5", 0.0),  # not boxed
        (r"\boxed{3}", "4", 0.0),
    ],
)
def test_math_needs_the_right_answer_in_a_box(response, label, expected):
    assert reward("math", response, label) == expected


@pytest.mark.parametrize(
    "response, expected",
    [
        (r"thought \boxed{1}</think> it is \boxed{2}", 1.0),
        (r"thought \boxed{2}</think> it is 2", 0.0),
        (r"it is \boxed{2}", 0.0),  # the thoughts do not end
        (r"###Response \boxed{2}", 1.0),
    ],
)
def test_deepscaler_judges_what_follows_the_thoughts(response, expected):
    assert reward("deepscaler", response, "2") == expected


@pytest.mark.parametrize(
    "response, expected",
    [
        ("First 5. Answer: 7", 1.0),
        ("Answer: 7\nAnswer: $8$", -1.0),
        ("it is 7", -1.0),
        ("Answer: 7" + " " * 300, -1.0),  # before the last 300 characters
    ],
)
def test_dapo_takes_the_last_answer_of_the_end(response, expected):
    assert reward("dapo", response, "7") == expected


@pytest.mark.parametrize(
    "response, label, expected",
    [
        ("The cat sat", "a cat sat!", 1.0),
        ("cat dog", "cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("yes it is", "yes", 0.0),
        ("Yes.", "yes", 1.0),
    ],
)
def test_f1_counts_shared_words(response, label, expected):
    assert reward("f1", response, label) == pytest.approx(expected)


@pytest.mark.parametrize(
    "response, label, metadata, expected",
    [
        ("The answer is B", "B", {}, 1.0),
        ("The answer is (C).", "B", {}, 0.0),
        ("A</think>Option D", "D", {}, 1.0),
        ("I pick B", 1, {"choices": ["x", "y"]}, 1.0),
        ("Answer: A", "mitosis", {"choices": ["Mitosis", "meiosis"]}, 1.0),
        ("it is meiosis", "meiosis", {"choices": ["mitosis", "meiosis"]}, 1.0),
        ("Z is correct", "A", {"valid_letters": ["A", "B"]}, 0.0),
    ],
)
def test_gpqa_compares_letters_and_else_texts(response, label, metadata, expected):
    assert reward("gpqa", response, label, **metadata) == expected


def test_boxed_types_judge_the_last_box_alone():
    assert reward("boxed_f1", r"cat \boxed{dog} and \boxed{a {b} c}", "b c") == pytest.approx(2 / 2)
    assert reward("boxed_gpqa", r"A \boxed{B}", "B") == 1.0
    assert reward("boxed_f1", "cat", "cat") == 0.0


def test_metadata_may_name_another_type():
    assert reward("f1", "Answer: 7", "7", rm_type="dapo") == 1.0
    assert reward("dapo", r"\boxed{cat}", "cat dog", rm_type="boxed_f1") == pytest.approx(2 / 3)


def test_random_gives_both():
    assert {reward("random", "", None) for _ in range(64)} == {0.0, 1.0}


@pytest.mark.parametrize(
    "rm_type, message",
    [
        ("remote_rm", "--custom-rm-path"),
        ("boxed_ifbench", "package of their own"),
        ("deepscalar", "Did you mean deepscaler"),
    ],
)
def test_other_types_are_refused_with_the_reason(rm_type, message):
    with pytest.raises(UserError, match=message):
        find_type(rm_type)


def test_every_type_has_an_import_path():
    for name in TYPES:
        assert callable(resolve(f"mmrl.rewards.slime_types:{name}"))
        assert callable(resolve(f"mmrl.rewards.slime_types:boxed_{name}"))
