import collections
import json

import pytest

from mmrl.data import DataConfig, example_batches, examples
from mmrl.data.bfcl import CATEGORIES, bfcl_examples
from mmrl.errors import UserError

EVERYTHING = {category: {} for category in CATEGORIES}
# Of the package's data/README.md and the leaderboard's release notes.
COUNTS = {
    "simple_python": 400,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
}


@pytest.fixture(scope="module")
def splits():
    return [bfcl_examples(EVERYTHING, held_out=h, held_out_every=4) for h in (False, True)]


def question(example):
    return [message["content"] for message in example.prompt if message["role"] == "user"]


def test_every_example_is_in_one_split_and_no_question_in_both(splits):
    train, held_out = splits
    ids = [example.metadata["id"] for example in train + held_out]
    assert len(set(ids)) == len(ids)
    counts = collections.Counter(example.metadata["dataset"] for example in train + held_out)
    assert {category: counts[category] for category in COUNTS} == COUNTS
    assert not {str(question(e)) for e in train} & {str(question(e)) for e in held_out}
    assert 0.2 < len(held_out) / len(ids) < 0.3


def test_the_split_does_not_depend_on_what_else_is_asked_for(splits):
    alone = bfcl_examples({"multiple": {}}, held_out=True, held_out_every=4)
    assert alone == [e for e in splits[1] if e.metadata["dataset"] == "multiple"]


def test_tools_are_json_schema_and_labels_are_answers(splits):
    jsonschema_types = {"string", "integer", "number", "boolean", "array", "object"}

    def types(schema):
        yield from [schema["type"]] if "type" in schema else []
        inner = [*schema.get("properties", {}).values()]
        for one in inner + ([schema["items"]] if "items" in schema else []):
            yield from types(one)

    seen = set()
    for example in splits[0] + splits[1]:
        names = set()
        for tool in example.tools:
            assert tool["type"] == "function"
            names.add(tool["function"]["name"])
            seen |= set(types(tool["function"]["parameters"]))
        if example.metadata["dataset"] in COUNTS and example.label:
            assert {name for answer in example.label for name in answer} <= names
        assert example.metadata["tools"] == example.tools
    assert seen == jsonschema_types
    labels = {e.metadata["dataset"]: e.label for e in splits[0]}
    assert labels["irrelevance"] == labels["live_irrelevance"] == []
    assert labels["live_relevance"] == "any"


def test_long_prompts_are_left_out_where_asked():
    most = {"live_multiple": {"characters": 2000, "tool_format": "m2"}}
    short = bfcl_examples(most, held_out=False, held_out_every=4)
    lengths = [len(json.dumps(e.prompt)) + len(json.dumps(e.tools)) for e in short]
    assert max(lengths) <= 2000 and 0 < len(short) < 800
    assert {e.metadata["tool_format"] for e in short} == {"m2"}


def test_the_pipeline_draws_them_by_split():
    config = DataConfig(source="bfcl", datasets={"parallel": {}}, held_out_every=4)
    held_out = examples(DataConfig(source="bfcl", datasets={"parallel": {}}, split="held_out"))
    assert len(examples(config)) == 150 and config.has_held_out
    assert {e.metadata["dataset"] for e in (held_out[i] for i in range(len(held_out)))} == {
        "parallel"
    }
    batch = next(example_batches(config, batch_size=8))
    assert len({e.metadata["id"] for e in batch}) == 8


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"simple": {}}, "no category 'simple'.*live_simple|simple_python"),
        ({"chain_sum": {}}, "no category 'chain_sum'. There are simple_python"),
        ({"parallel": {"character": 1}}, "no setting 'character'. Did you mean characters"),
        ({"parallel": {"characters": 1}}, "no training examples"),
    ],
)
def test_mistakes_name_what_exists(datasets, message):
    with pytest.raises(UserError, match=message):
        bfcl_examples(datasets, held_out=False, held_out_every=4)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr("mmrl.packages.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps bfcl-eval"):
        bfcl_examples({"parallel": {}}, held_out=False, held_out_every=4)
