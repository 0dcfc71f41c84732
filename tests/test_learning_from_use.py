"""The whole circle: serve, fail, harvest, train, serve better, with a scripted user."""

import json

import pytest
from tiny_run import run_module


@pytest.mark.slow
def test_a_served_model_answers_better_after_training_on_its_harvested_failures(tmp_path):
    """The user asks for letters and says what was right: by thumbs-down, or in the next turn."""
    result = run_module("learning_member", str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    labels = {row["prompt"][-1]["content"]: row["label"] for row in found["rows"]}
    assert labels == {letter: letter for letter in "abcd"} and len(found["rows"]) == 4
    reasons = {row["label"]: row["metadata"]["reasons"] for row in found["rows"]}
    assert "thumbs_down" in reasons["a"] and "correction" in reasons["d"]
    assert "written   4 prompts" in found["summary"]
    assert found["lost"] == 0
    assert found["before"] < 0.5 and found["after"] > 0.8
