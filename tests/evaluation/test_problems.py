"""Which problems a request means, and what a mistaken one says."""

import dataclasses
import json

import pytest
from tiny_run import make_run

from mmrl.data import DataConfig, Sample, Status
from mmrl.data.tasks import is_held_out
from mmrl.errors import UserError
from mmrl.evaluation.problems import Request, find_problems, parse_settings
from mmrl.rewards import score

SHORT = {"min_word_len": 3, "max_word_len": 4}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"q": f"What is {i} + 1?", "a": str(i + 1)} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KEYS = DataConfig(input_key="q", label_key="a", prompt_suffix="\n")


def test_a_dataset_gives_held_out_problems_and_its_own_verifier():
    evaluation = find_problems(Request("spell_backward", limit=20, settings=SHORT))
    assert evaluation.reward == "mmrl.rewards.reasoning_gym:score"
    assert [p.index for p in evaluation.problems] == list(range(20))
    for problem in evaluation.problems:
        question = problem.example.metadata["entry"]["question"]
        assert is_held_out(question, 16) and problem.example.prompt == question
        assert 3 <= len(problem.example.metadata["entry"]["metadata"]["word"]) <= 4


def test_several_datasets_have_problems_and_settings_of_their_own():
    request = Request("spell_backward, chain_sum", limit=3, settings={"spell_backward": SHORT})
    evaluation = find_problems(request)
    assert [(p.task, p.index) for p in evaluation.problems] == [
        (task, index) for task in ("spell_backward", "chain_sum") for index in range(3)
    ]
    assert evaluation.problems[0].example.metadata["settings"]["max_word_len"] == 4


def test_more_problems_begin_with_those_of_fewer_and_another_seed_has_others():
    """So that an evaluation with a lower limit can be compared with one of more problems."""

    def prompts(limit, seed=0):
        request = Request("chain_sum", limit=limit, data=DataConfig(seed=seed))
        return [p.example.prompt for p in find_problems(request).problems]

    assert prompts(8)[:5] == prompts(5) != prompts(5, seed=1)


def test_a_file_gives_its_rows_judged_as_mathematics(file):
    evaluation = find_problems(Request(f"{file}@[1:4]", data=KEYS))
    assert evaluation.reward == "mmrl.rewards.maths:score"
    assert [p.example.label for p in evaluation.problems] == ["2", "3", "4"]
    assert evaluation.problems[0].example.prompt == "What is 1 + 1?\n"
    assert evaluation.problems[0].task == "sums"
    assert len(find_problems(Request(str(file), limit=2, data=KEYS)).problems) == 2


def test_prompts_become_messages_for_a_chat_template(file):
    data = dataclasses.replace(KEYS, chat=True, system_prompt="Be brief.")
    problem = find_problems(Request(str(file), data=data)).problems[0]
    assert problem.example.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 0 + 1?\n"},
    ]


def test_a_run_directory_gives_its_held_out_problems_reward_and_sampling(tmp_path):
    run = make_run(tmp_path)
    evaluation = find_problems(Request(str(run)))
    assert [p.example.prompt for p in evaluation.problems] == ["a>", "b>", "c>", "d>"] * 2
    assert [p.index for p in evaluation.problems] == list(range(8))
    assert evaluation.reward == "oracles.copy_letter:score"
    assert evaluation.sampling.max_new_tokens == 2 and evaluation.sampling.group_size == 1
    assert len(find_problems(Request(str(run), limit=3)).problems) == 3


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("spell_backwrd", {}, "Did you mean spell_backward"),
        ("spell_backward", {"settings": {"min_word_length": 3}}, "Did you mean min_word_len"),
        ("spell_backward,chain_sum", {"settings": SHORT}, "min_word_len is none of"),
        ("{file}", {"settings": SHORT}, "--settings are for datasets"),
        ("{file}", {"data": dataclasses.replace(KEYS, label_key=None)}, "--label_key or --reward"),
        ("{file}", {"data": dataclasses.replace(KEYS, label_key="b")}, "field 'b' is missing"),
        ("{file}x.jsonl", {}, "no data file"),
        ("somewhere/else", {}, "no run directory with a config.json"),
    ],
)
def test_a_mistake_is_named(task, changes, message, file):
    with pytest.raises(ValueError, match=message):
        find_problems(Request(task.format(file=file), **({"data": KEYS} | changes)))


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_settings_are_a_json_object(text):
    with pytest.raises(ValueError, match="--settings"):
        parse_settings(text)


def test_a_reward_of_a_run_gets_slimes_arguments_from_its_config(tmp_path):
    run = make_run(tmp_path, reward="rewards.slime_style.reward")
    evaluation = find_problems(Request(str(run), limit=2))
    sample = Sample(response="a", label="a", status=Status.COMPLETED)
    [result] = score([sample], evaluation.find_reward())
    assert result.value == 8.0  # the run's samples a prompt


def test_a_reward_of_groups_judges_no_single_response(tmp_path):
    run = make_run(tmp_path, reward="rewards.slime_style.ranks", group_reward=True)
    with pytest.raises(UserError, match="a reward of whole groups"):
        find_problems(Request(str(run)))
