import pytest

from mmrl.data import DataConfig, Sample, examples
from mmrl.data.records import Status
from mmrl.rewards import resolve


def sample(name, response, **settings):
    example = examples(DataConfig(datasets={name: settings}))[0]
    text = response(example) if callable(response) else response
    return Sample(response=text, label=example.label, metadata=example.metadata)


reward = resolve("mmrl.rewards.reasoning_gym:score")
solved_only = resolve("mmrl.rewards.reasoning_gym:solved")
final_word = resolve("mmrl.rewards.reasoning_gym:final_word")


@pytest.mark.parametrize("name", ["chain_sum", "spell_backward", "gcd", "simple_equations"])
def test_the_label_solves_and_nonsense_does_not(name):
    solved = {"reward": 1.0, "solved": 1.0}
    assert reward(sample(name, lambda example: example.label)) == solved
    assert reward(sample(name, lambda example: f" {example.label}\n")) == solved
    thought = sample(name, lambda example: f"17? <answer>\n{example.label} </answer> done")
    assert reward(thought) == solved
    for nonsense in ("?", ""):
        assert reward(sample(name, nonsense))["solved"] == 0.0


def test_partial_credit_is_the_datasets_own_and_not_solved():
    """spell_backward gives the share of letters in place: all but the first, here."""
    result = reward(sample("spell_backward", lambda example: "?" + example.label[1:]))
    letters = len(sample("spell_backward", "").label)
    assert result == {"reward": pytest.approx((letters - 1) / letters), "solved": 0.0}


def test_solved_gives_no_partial_credit():
    almost = sample("spell_backward", lambda example: "?" + example.label[1:])
    assert solved_only(almost) == {"reward": 0.0, "solved": 0.0}
    exact = sample("spell_backward", lambda example: example.label)
    assert solved_only(exact) == {"reward": 1.0, "solved": 1.0}


def test_chain_sum_accepts_equal_numbers_written_otherwise():
    assert reward(sample("chain_sum", lambda example: f"{example.label}.00"))["solved"] == 1.0


@pytest.mark.parametrize(
    ("sentence", "status", "reward"),
    [
        ("{}", Status.COMPLETED, 1.0),
        ("3 * 4 = {}", Status.COMPLETED, 1.0),
        ("The answer is **{}**.\n", Status.COMPLETED, 1.0),
        ("{} is the answer.", Status.COMPLETED, 0.0),
        ("It is -{}", Status.COMPLETED, 0.0),
        ("", Status.COMPLETED, 0.0),
        ("...", Status.COMPLETED, 0.0),
        ("The answer is {}", Status.TRUNCATED, 0.0),
    ],
)
def test_final_word_judges_the_end_of_a_finished_response(sentence, status, reward):
    judged = sample("products", lambda example: sentence.format(example.label))
    judged.status = status
    assert final_word(judged) == {"reward": reward, "solved": reward}
