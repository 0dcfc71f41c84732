"""The evaluation binary, and that batches change neither problems nor responses."""

import json

import jax
import pytest
from absl import flags
from tiny_run import make_run, run_module

import mmrl.evaluate  # noqa: F401  (its flags)
from mmrl.evaluation.problems import Request, find_problems
from mmrl.evaluation.responses import judged_responses
from mmrl.models import load
from mmrl.rollout import SamplingConfig, generate
from mmrl.text import CharTokenizer

SAMPLING = SamplingConfig(group_size=3, max_new_tokens=4, stop_ids=CharTokenizer.stop_ids)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("evaluate"))


def begins_with_label(sample):
    if sample.label == "d":
        raise RuntimeError("no d")
    return float(sample.response[:1] == sample.label)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_responses_are_those_of_generate_whatever_the_batch(batch, run):
    model, tokenizer = load(run)
    problems = find_problems(Request(str(run))).problems
    key = jax.random.key(1)
    batches = list(
        judged_responses(
            model, tokenizer, problems, SAMPLING, begins_with_label, batch=batch, key=key
        )
    )
    assert [len(rows) // 3 for rows in batches] == {
        1: [1] * 8, 3: [3, 3, 2], 50: [8]
    }[batch]  # fmt: skip
    rows = [row for rows in batches for row in rows]
    prompts = [tokenizer.encode(problem.example.prompt) for problem in problems]
    rollout = generate(model, prompts, SAMPLING, key)
    for index, row in enumerate(rows):
        p, g = divmod(index, 3)
        response = rollout.tokens[p, g, : rollout.lengths[p, g]].tolist()
        assert (row["problem"], row["sample"], row["prompt"]) == (p, g, problems[p].example.prompt)
        assert row["response"] == tokenizer.decode(response) and row["tokens"] == len(response)
        letter = problems[p].example.label
        if letter == "d":
            assert (row["solved"], row["error"]) == (0.0, "RuntimeError: no d")
        else:
            assert row["solved"] == row["reward"] == float(row["response"][:1] == letter)
    assert 0 < sum(row["solved"] for row in rows) < len(rows)


def test_the_binary_writes_every_response_and_reports_their_means(run, tmp_path):
    output = tmp_path / "rows.jsonl"
    result = run_module(
        "mmrl.evaluate",
        f"--checkpoint={run}", "--n=4", "--k=1,4", "--batch=3", f"--output={output}", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 8 * 4 and "8/8 problems" in result.stderr
    [(task, summary)] = json.loads(result.stdout).items()
    assert (task, summary["problems"], summary["samples"]) == ("run", 8, 4)
    groups = [rows[i : i + 4] for i in range(0, 32, 4)]
    expected = {
        "avg@4": sum(row["solved"] for row in rows) / 32,
        "pass@4": sum(any(row["solved"] for row in group) for group in groups) / 8,
    }
    for name, value in expected.items():
        figure = summary["figures"][name]
        assert figure["mean"] == pytest.approx(value)
        assert figure["low"] <= value <= figure["high"]


def test_a_checkpoint_has_no_gain_over_itself_and_the_table_says_so(run, tmp_path):
    output = tmp_path / "rows.jsonl"
    common = (
        f"--checkpoint={run}", f"--task={run.parent / 'data.jsonl'}", "--input_key=prompt",
        "--reward=oracles.copy_letter:score", "--n=2", "--limit=5", "--max_new_tokens=3",
    )  # fmt: skip
    first = run_module("mmrl.evaluate", *common, f"--output={output}")
    assert first.returncode == 0, first.stderr
    again = run_module("mmrl.evaluate", *common, f"--baseline={output}")
    header, line = again.stdout.splitlines()
    assert "gain of avg@2" in header and "+0.000 [+0.000, +0.000]" in line
    assert line.split()[:3] == ["data", "5", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n=2", "--k=3"], "--k must lie in 1..2"),
        (["--k=some"], "--k is a number"),
        (["--system=Hello"], "--system needs a chat template"),
        (["--baseline=absent.jsonl"], "no baseline absent.jsonl"),
        (["--reward=oracles.copy_letter:scor"], "Did you mean score"),
        (["chain_sum"], "write --task=chain_sum"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, run):
    result = run_module("mmrl.evaluate", f"--checkpoint={run}", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_every_flag_of_the_binary_has_its_help():
    keys = {flag.name: flag.help for flag in flags.FLAGS.get_key_flags_for_module("mmrl.evaluate")}
    assert keys.keys() >= {
        "checkpoint", "task", "n", "k", "limit", "batch", "settings", "reward", "system", "output",
        "baseline", "json", "temperature", "prompt_suffix", "input_key", "label_key",
    }  # fmt: skip
    assert all(keys.values())
