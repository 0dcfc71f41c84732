"""slime's flags on a command line, read as argparse reads them in slime."""

import argparse

import pytest
from oracles.slime_flags import FLAGS

from mmrl.errors import UserError
from mmrl.slime import split_argv
from mmrl.slime.refused import Refused
from mmrl.slime.table import TABLE, meaning

FORMS = {name: form for form, names in FLAGS.items() for name in names.split()}


@pytest.mark.parametrize("flag", FORMS)
def test_every_flag_of_slime_is_in_the_table_with_its_form(flag):
    found = meaning(flag)
    assert found is not None
    assert found.form == FORMS[flag]


def test_every_refusal_gives_a_reason():
    reasons = [found.why for found in TABLE.values() if isinstance(found, Refused)]
    assert len(reasons) > 100
    assert all(len(reason) > 20 for reason in reasons)


def slime_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for flag, form in FORMS.items():
        action = dict(action="store_true") if form == "switch" else {}
        parser.add_argument(f"--{flag}", **action, **({"nargs": "+"} if form == "values" else {}))
    return parser


@pytest.mark.parametrize(
    "line",
    [
        "--rollout-top-k -1 --rollout-temperature 0.8",
        "--rollout-top-k=-1 --prompt-data=a.jsonl@[0:8]",
        "--apply-chat-template --rm-type math --rollout-shuffle",
        "--rollout-stop </a> </b> --num-rollout 3",
        "--eval-prompt-data aime /data/aime.jsonl --eval-interval 20",
        "--eps-clip 0.1 --eps-clip 0.3",
        "--wandb-key=a=b",
    ],
)
def test_flags_are_read_as_argparse_reads_them(line):
    expected = vars(slime_parser().parse_args(line.split()))
    _, given = split_argv(["train.py", *line.split()])
    for flag in FORMS:
        value = expected[flag.replace("-", "_")]
        if flag not in given:
            assert value in (None, False), flag
        elif FORMS[flag] == "switch":
            assert value is True and given[flag] == ()
        else:
            assert list(given[flag]) == (value if isinstance(value, list) else [value])


def test_the_programs_own_flags_stay_in_their_order():
    own = {"config", "workdir", "verbosity", "alsologtostderr"}
    argv = ["x", "--config", "a.py", "--lr", "1e-5", "--workdir=w", "--noalsologtostderr", "rest"]
    rest, given = split_argv([*argv, "--seed", "3"], own)
    assert rest == ["x", "--config", "a.py", "--workdir=w", "--noalsologtostderr", "rest"]
    assert given == {"lr": ("1e-5",), "seed": ("3",)}


def test_nothing_after_a_bare_double_dash_is_touched():
    assert split_argv(["x", "--", "--lr", "1"]) == (["x", "--", "--lr", "1"], {})


@pytest.mark.parametrize(
    "line, message",
    [
        ("--rollout-max-respnse-len 5", "--rollout-max-respnse-len .*--rollout-max-response-len"),
        ("--advantage_estimator cispo", "Did you mean --advantage-estimator"),
        ("--workdirr=x", "Did you mean --workdir"),
        ("--lr --seed 3", "--lr needs a value"),
        ("--apply-chat-template=true", "--apply-chat-template takes no value"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_flag(line, message):
    with pytest.raises(UserError, match=message):
        split_argv(["x", *line.split()], {"workdir"})
