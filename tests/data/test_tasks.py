import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmrl.data.tasks import ReasoningGymSource

SUMS = {"chain_sum": {"max_terms": 3, "max_digits": 2}}
ONE_DIGIT = {"chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}  # 200 questions


def questions(source):
    return [source[index].prompt for index in range(len(source))]


def expression(question):
    return re.search(r": (.*) =", question).group(1)


def test_labels_are_right_by_independent_arithmetic():
    source = ReasoningGymSource(SUMS, seed=0, size=300)
    for index in range(300):
        example = source[index]
        assert re.fullmatch(r"[\d +-]+", expression(example.prompt))
        terms = expression(example.prompt).replace(" ", "").replace("-", "+-").split("+")
        assert str(sum(map(int, terms))) == example.label

    words = ReasoningGymSource({"spell_backward": {}}, seed=0, size=100)
    for index in range(100):
        example = words[index]
        assert example.prompt.endswith(": " + "".join(reversed(example.label)))


def test_an_example_depends_on_the_seed_and_its_index_alone():
    source = ReasoningGymSource(SUMS, seed=3, size=50)
    backwards = [source[index] for index in reversed(range(50))]
    assert backwards[::-1] == [ReasoningGymSource(SUMS, seed=3, size=99)[i] for i in range(50)]
    assert questions(source) != questions(ReasoningGymSource(SUMS, seed=4, size=50))


@pytest.mark.parametrize("name", ["isomorphic_strings", "ransom_note", "chain_sum"])
def test_an_example_is_the_same_in_every_process(name):
    """Two processes hash strings differently, and so order sets differently."""
    program = (
        "from mmrl.data.tasks import ReasoningGymSource\n"
        f"source = ReasoningGymSource({{{name!r}: {{}}}}, seed=0, size=10)\n"
        "print([source[index].prompt for index in range(5)])"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second and len(first) > 100


def test_held_out_questions_never_occur_in_training_even_in_a_tiny_task():
    held_out = set()
    for seed in (0, 7):
        held_out.update(
            questions(ReasoningGymSource(ONE_DIGIT, seed=seed, size=300, held_out=True))
        )
    for seed in (0, 8):
        train = set(questions(ReasoningGymSource(ONE_DIGIT, seed=seed, size=4000)))
        assert not train & held_out
        # Training draws each of the 200 questions of the task that is not held out.
        assert len(train) + len(held_out) == 200
    assert held_out


def test_datasets_are_drawn_in_proportion_to_their_weights():
    mixture = {"chain_sum": {"weight": 3}, "spell_backward": {}}
    source = ReasoningGymSource(mixture, seed=0, size=2000)
    counts = Counter(source[index].metadata["dataset"] for index in range(2000))
    assert counts.keys() == set(mixture)
    assert abs(counts["chain_sum"] / 2000 - 0.75) < 0.04  # 4 standard deviations


def test_datasets_that_index_a_list_of_entries_stay_inside_it():
    datasets = {"word_ladder": {"size": 50}, "list_functions": {"size": 50}}
    source = ReasoningGymSource(datasets, seed=0, size=20)
    assert all(source[index].prompt for index in range(20))


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"chain_sun": {}}, "no dataset 'chain_sun'.*chain_sum"),
        ({"chain_sum": {"max_term": 3}}, "chain_sum has no setting 'max_term'.*max_terms"),
        ({"chain_sum": {"wieght": 3}}, "chain_sum has no setting 'wieght'.*weight"),
        ({"chain_sum": {"max_terms": 1}}, "chain_sum refuses .*max_terms must be"),
        ({"chain_sum": {"weight": 0}}, "chain_sum: weight must be positive"),
        ({}, "datasets is empty"),
    ],
)
def test_mistakes_name_the_dataset_and_the_remedy(datasets, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGymSource(datasets, seed=0, size=10)


def test_a_task_without_a_question_for_the_split_is_an_error():
    one_question = {"spell_backward": {"size": 1, "seed": 0}}
    splits = [ReasoningGymSource(one_question, seed=0, size=1, held_out=h) for h in (True, False)]
    empty = []
    for source in splits:
        try:
            assert source[0].prompt
        except ValueError as error:
            empty.append(str(error))
    assert len(empty) == 1 and "too few questions" in empty[0]
