import pytest

from mmrl.data import Sample, Status
from mmrl.rewards.formats import answer_tag, think


@pytest.mark.parametrize(
    ("response", "opened", "right"),
    [
        ("<think>so</think>4", False, 1),
        ("\n<think>\nso\n</think>\n\n4\n", False, 1),
        ("so</think>4", True, 1),
        ("so</think>4", False, 0),
        ("<think>so</think>4", True, 0),
        ("<think> </think>4", False, 0),
        ("<think>so</think> \n", False, 0),
        ("<think>so", False, 0),
        ("Well, <think>so</think>4", False, 0),
        ("<think>a<think>so</think>4", False, 0),
        ("<think>so</think>4</think>5", False, 0),
        ("<think>so</think>4<think>", False, 0),
        ("a</think>4<think>b", True, 0),
        ("4", False, 0),
        ("", True, 0),
    ],
)
def test_reasoning_comes_once_and_before_an_answer(response, opened, right):
    whole = Sample(response=response, status=Status.COMPLETED)
    assert think(whole, opened=opened) == right
    assert think(Sample(response=response, status=Status.TRUNCATED), opened=opened) == 0


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("So it is <answer>4</answer>", 1),
        ("<answer>4</answer>\n", 1),
        ("<answer>4</answer> I think", 0),
        ("<answer> </answer>", 0),
        ("<answer>4</answer><answer>5</answer>", 0),
        ("</answer>4<answer>", 0),
        ("<answer>4", 0),
        ("4", 0),
    ],
)
def test_one_answer_element_ends_the_response(response, right):
    assert answer_tag(Sample(response=response, status=Status.COMPLETED)) == right
    other = response.replace("answer", "final")
    assert answer_tag(Sample(response=other, status=Status.COMPLETED), tag="final") == right
