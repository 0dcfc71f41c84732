"""A config keeps its types through overrides and JSON; a mistake is one line that says where."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl import config as config_lib
from mmrl.errors import UserError


@dataclass(frozen=True)
class Model:
    num_heads: int = 4
    num_kv_heads: int = 2
    pattern: tuple[Literal["lightning", "softmax"], ...] = ("softmax",)
    rotary_dim: int | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of {self.num_kv_heads}"
            )


@dataclass(frozen=True)
class Task:
    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Warmstart:
    steps: int
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Config:
    model: Model = Model()
    tasks: tuple[Task, ...] = (Task("sum"), Task("sort", 2.0))
    warmstart: Warmstart | None = None
    learning_rate: float = 1e-3
    clip: float = math.inf
    shuffle: bool = True
    name: str = "run"
    reward_weights: dict[str, float] = field(default_factory=lambda: {"answer": 1.0})
    limit: int | Literal["auto"] = "auto"
    bounds: dict[str, float] | None = None


@pytest.mark.parametrize(
    ("key", "text", "read", "expected"),
    [
        ("learning_rate", "3", lambda c: c.learning_rate, 3.0),
        ("model.num_heads", "1e1", lambda c: c.model.num_heads, 10),
        ("tasks.1.weight", "0.5", lambda c: c.tasks[1].weight, 0.5),
        ("tasks.0.options.digits", "3", lambda c: c.tasks[0].options, {"digits": 3}),
        ("reward_weights.answer", "2", lambda c: c.reward_weights, {"answer": 2.0}),
        ("reward_weights.format", "1", lambda c: c.reward_weights, {"answer": 1.0, "format": 1.0}),
        ("reward_weights", "{'format': 1}", lambda c: c.reward_weights, {"format": 1.0}),
        ("bounds.low", "1", lambda c: c.bounds, {"low": 1.0}),
        ("limit", "12", lambda c: c.limit, 12),
    ],
)
def test_override_reaches_fields_entries_of_dicts_and_items_of_tuples(key, text, read, expected):
    assert read(config_lib.override(Config(), {key: text})) == expected


def test_override_leaves_everything_else_and_the_original_alone():
    original = Config()
    changed = config_lib.override(original, {"tasks.1.weight": "5", "model.num_heads": "6"})
    assert original == Config()
    assert changed == Config(tasks=(Task("sum"), Task("sort", 5.0)), model=Model(num_heads=6))


def test_changes_of_one_dataclass_are_validated_together():
    """Neither 9 heads over 2 nor 4 heads over 3 is valid; 9 over 3 is."""
    changes = {"model.num_heads": "9", "model.num_kv_heads": "3"}
    assert config_lib.override(Config(), changes).model == Model(9, 3)
    with pytest.raises(UserError, match=r"^config\.model: num_heads=9 must be a multiple of 2$"):
        config_lib.override(Config(), {"model.num_heads": "9"})


def test_absent_optional_group_is_created_from_its_overrides():
    changed = config_lib.override(Config(), {"warmstart.steps": "7", "warmstart.betas": "0.5,0.9"})
    assert changed.warmstart == Warmstart(7, (0.5, 0.9))
    with pytest.raises(UserError, match=r"config\.warmstart: .*'steps'"):
        config_lib.override(Config(), {"warmstart.betas": "0.5,0.9"})


@dataclass(frozen=True)
class WithUnion:
    source: Task | Warmstart = Task("sum", 2.0)


def test_overrides_of_another_dataclass_of_a_union_make_one_of_that_kind():
    def override(value, **texts):
        overrides = {f"source.{name}": text for name, text in texts.items()}
        return config_lib.override(WithUnion(value), overrides).source

    assert override(Task("sum", 2.0), name="sort") == Task("sort", 2.0)
    assert override(Task("sum", 2.0), steps="3") == Warmstart(3)
    assert override(Warmstart(3), steps="4", betas="0.5,0.6") == Warmstart(4, (0.5, 0.6))
    with pytest.raises(UserError, match=r"config\.source\.nme does not exist\. Did you mean"):
        override(Task("sum"), nme="sort")
    with pytest.raises(UserError, match=r"config\.source\.\w+ does not exist"):
        override(Task("sum"), weight="1", steps="3")
    with pytest.raises(UserError, match=r"config\.source: .*missing.*'name'"):
        override(Warmstart(3), weight="1")


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("model.num_head", "8", ["config.model.num_head does not exist", "model.num_heads?"]),
        ("lr.learning_rate", "8", ["does not exist", "Did you mean learning_rate?"]),
        ("num_kv_heads", "8", ["does not exist", "Did you mean model.num_kv_heads?"]),
        ("tasks.2.weight", "8", ["config.tasks.2.weight does not exist"]),
        ("zzzzzzzzzzzzz", "8", ["config.zzzzzzzzzzzzz does not exist", "learning_rate"]),
        ("model.num_heads", "2.5", ["config.model.num_heads: expected an int", "2.5"]),
        ("tasks.0", "sum", ["config.tasks.0 is a group of settings", "config.tasks.0.name="]),
        ("reward_weights.format", "x", ["config.reward_weights.format", "expected a float"]),
    ],
)
def test_wrong_override_names_the_key_the_value_and_what_is_expected(key, text, words):
    with pytest.raises(UserError) as error:
        config_lib.override(Config(), {key: text})
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


def test_key_set_as_a_whole_and_in_part_is_refused():
    changes = {"warmstart": "none", "warmstart.steps": "3"}
    for order in (changes, dict(reversed(changes.items()))):
        with pytest.raises(UserError, match="as a whole and in part"):
            config_lib.override(Config(), order)


def test_split_argv_takes_only_dotted_config_arguments():
    argv = ["train.py", "--config=a.py", "--config.a.b=1=2", "--workdir", "d", "--config.c", "-1"]
    argv += ["-config.d=", "--configs.e=1", "--config.a.b=3", "--", "--config.f=1"]
    remaining, overrides = config_lib.split_argv(argv)
    assert remaining == [
        *["train.py", "--config=a.py", "--workdir", "d", "--configs.e=1", "--", "--config.f=1"]
    ]
    assert overrides == {"a.b": "3", "c": "-1", "d": ""}


@pytest.mark.parametrize("rest", [[], ["--workdir=d"], ["--"]])
def test_split_argv_refuses_a_key_without_value(rest):
    with pytest.raises(UserError, match=r"--config\.a needs a value"):
        config_lib.split_argv(["train.py", "--config.a", *rest])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(model=Model(num_heads=4.0)), r"config\.model\.num_heads: expected an int, got 4.0"),
        (Config(shuffle=1), r"config\.shuffle: expected true or false, got 1 \(int\)"),
        (Config(model=Warmstart(1)), r"config\.model: expected a Model"),
        (Config(tasks=(Task("a"), Task(3))), r"config\.tasks\.1\.name: expected a str, got 3"),
        (Config(warmstart=Warmstart("7")), r"config\.warmstart\.steps: expected an int, got '7'"),
        (Config(reward_weights={"a": "1"}), r"config\.reward_weights\.a: expected a float"),
    ],
)
def test_values_of_the_python_file_are_checked_against_annotations(config, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(config)


def test_int_serves_as_float():
    config = Config(learning_rate=1, warmstart=Warmstart(3, (0, 1)))
    config_lib.validate(config)
    assert config_lib.from_dict(Config, config_lib.to_dict(config)) == config


FLOATS = st.floats(allow_nan=False)
CONFIGS = st.builds(
    Config,
    model=st.builds(
        Model,
        num_heads=st.sampled_from([2, 4, 8]),
        num_kv_heads=st.sampled_from([1, 2]),
        pattern=st.lists(st.sampled_from(["lightning", "softmax"])).map(tuple),
        rotary_dim=st.none() | st.integers(),
    ),
    tasks=st.lists(
        st.builds(Task, st.text(), FLOATS, st.dictionaries(st.text(), st.none() | st.integers()))
    ).map(tuple),
    warmstart=st.none() | st.builds(Warmstart, st.integers(), st.tuples(FLOATS, FLOATS)),
    learning_rate=FLOATS,
    clip=FLOATS,
    shuffle=st.booleans(),
    name=st.text(),
    reward_weights=st.dictionaries(st.text(), FLOATS),
    limit=st.integers() | st.just("auto"),
)


@settings(deadline=None)
@given(CONFIGS)
def test_json_round_trip_is_exact_and_strict_json(config):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = json.dumps(config_lib.to_dict(config))
    assert config_lib.from_dict(Config, json.loads(text, parse_constant=refuse)) == config


def test_saved_file_loads_to_an_equal_config(tmp_path):
    config = Config(clip=-math.inf, warmstart=Warmstart(2))
    config_lib.save_json(config, tmp_path / "config.json")
    assert config_lib.load_json(Config, tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"num_hads": 1}}', r"config\.model\.num_hads does not exist\. .*num_heads\?"),
        ('{"model": {"num_heads": "4"}}', r"config\.model\.num_heads: expected an int"),
        ('{"model": {"num_heads": 3}}', r"config\.model: num_heads=3 must be"),
        ('{"name": ', r"config\.json"),
    ],
)
def test_wrong_json_names_the_file_and_the_key(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config_lib.load_json(Config, path)
    assert str(error.value).startswith(str(path))


def write_config(path, body):
    shape = "@dataclasses.dataclass(frozen=True)\nclass Config:\n    steps: int = 1\n"
    path.write_text(f"import dataclasses\n{shape}\n{body}\n")
    return path


def test_load_returns_what_get_config_gives(tmp_path):
    path = write_config(
        tmp_path / "a.py", "STEPS = 5\ndef get_config():\n    return Config(steps=STEPS)"
    )
    config = config_lib.load(path)
    assert dataclasses.asdict(config) == {"steps": 5}
    assert config_lib.override(config, {"steps": "6"}).steps == 6


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_confg(): pass", r"a\.py must define get_config\(\)"),
        ("def get_config(): return {}", r"a\.py: get_config\(\) must return a dataclass, got \{\}"),
        ("def get_config(): return Config(steps='3')", r"config\.steps: expected an int, got '3'"),
        ("def get_config(): return Config(stps=3)", r"a\.py:6: TypeError: .*'stps'"),
        ("1 +", r"a\.py:6: SyntaxError"),
        ("\nimport no_such_module_", r"a\.py:7: ModuleNotFoundError: .*no_such_module_"),
    ],
)
def test_broken_config_file_is_one_line_with_file_and_line(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        config_lib.load(write_config(tmp_path / "a.py", body))


def test_missing_config_file_names_the_nearest(tmp_path):
    (tmp_path / "quickstart.py").touch()
    with pytest.raises(UserError, match=r"no config file .*quikstart\.py\. .*quickstart\.py\?"):
        config_lib.load(tmp_path / "quikstart.py")
    with pytest.raises(UserError, match="no config file"):
        config_lib.load(tmp_path / "nowhere" / "quikstart.py")


PROGRAM = """
from absl import flags
from mmrl import config as config_lib
flags.DEFINE_string("workdir", None, "Where.")
def main(argv, overrides):
    if "bad" in overrides:
        raise config_lib.UserError(f"config.bad: expected an int, got {overrides['bad']}")
    if "bug" in overrides:
        raise RuntimeError("a bug")
    print(flags.FLAGS.workdir, overrides)
if __name__ == "__main__":
    config_lib.run(main, overrides=True)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "stdout", "stderr"),
    [
        (["--workdir=d", "--config.a.b", "1"], 0, "d {'a.b': '1'}\n", ""),
        (["--config.bad=x"], 2, "", "error: config.bad: expected an int, got x\n"),
        (["--config.bad"], 2, "", "error: --config.bad needs a value: --config.bad=VALUE\n"),
        (["--workdr=d"], 1, "", "Did you mean: workdir"),
        (["--config.bug=x"], 1, "", "RuntimeError: a bug"),
    ],
)
def test_binary_prints_a_users_mistake_as_one_line(tmp_path, arguments, status, stdout, stderr):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (status, stdout)
    assert stderr in done.stderr
    assert ("Traceback" in done.stderr) == (arguments == ["--config.bug=x"])
    if status == 2:
        assert done.stderr == stderr
