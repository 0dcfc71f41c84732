"""Evaluates a model: avg@n and pass@k with 95% bootstrap intervals over the problems.

    python -m mmrl.evaluate --checkpoint=runs/quickstart
    python -m mmrl.evaluate --checkpoint=DIR --task=spell_backward,chain_sum --n=8 --k=1,8
    python -m mmrl.evaluate --checkpoint=DIR --task=gsm8k.jsonl --n=4 --output=after.jsonl \\
        --baseline=before.jsonl

--task is what `mmrl.evaluation.problems.Request` says; without it the checkpoint must be a run
directory, whose held-out problems are asked. With --baseline, the --output of another checkpoint on
the same problems, the gain and its interval are those of the paired differences.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from absl import flags

from mmrl import config as configs
from mmrl import generation_flags as generation
from mmrl.data import DataConfig
from mmrl.errors import UserError
from mmrl.evaluation.problems import Request, find_problems, parse_settings
from mmrl.evaluation.responses import Row, judged_responses
from mmrl.evaluation.summary import read_rows, summarise, table
from mmrl.text import Tokenizer

_TASK = flags.DEFINE_string(
    "task", None, "reasoning_gym datasets, a .jsonl or .parquet file, or a run directory."
)
_N = flags.DEFINE_integer("n", 1, "Responses to each problem.", lower_bound=1)
_K = flags.DEFINE_list("k", None, "pass@k for each of these; by default n.")
_LIMIT = flags.DEFINE_integer("limit", None, "Problems of each dataset or file.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Problems that are sampled together.", lower_bound=1)
_SETTINGS = flags.DEFINE_string(
    "settings", "{}", "JSON: settings of the reasoning_gym dataset, or {name: settings}."
)
_REWARD = flags.DEFINE_string(
    "reward", None, "Import path; by default the dataset's verifier, or mathematics for a file."
)
_INPUT_KEY = flags.DEFINE_string("input_key", "input", "Field of the prompt in a file.")
_LABEL_KEY = flags.DEFINE_string("label_key", "label", "Field of the label; '' for none.")
_METADATA_KEY = flags.DEFINE_string("metadata_key", "metadata", "Field of the metadata.")
_TOOL_KEY = flags.DEFINE_string("tool_key", "tools", "Field of the tool descriptions.")
_PROMPT_SUFFIX = flags.DEFINE_string("prompt_suffix", "", "Appended to prompts that are text.")
_OUTPUT = flags.DEFINE_string("output", None, "Writes every response and its score, JSON lines.")
_BASELINE = flags.DEFINE_string("baseline", None, "Earlier --output, to give the gain over.")
_JSON = flags.DEFINE_boolean("json", False, "Prints one JSON object in place of the table.")
flags.adopt_module_key_flags(generation)


def request_from_flags(tokenizer: Tokenizer) -> Request:
    """The request; prompts become chat messages where the tokenizer has a chat template."""
    chat = tokenizer.chat_template is not None and not generation.RAW.value
    if generation.SYSTEM.value is not None and not chat:
        raise UserError("--system needs a chat template: the model has none, or --raw is given")
    data = DataConfig(
        input_key=_INPUT_KEY.value,
        label_key=_LABEL_KEY.value or None,
        metadata_key=_METADATA_KEY.value,
        tool_key=_TOOL_KEY.value,
        prompt_suffix=_PROMPT_SUFFIX.value,
        chat=chat,
        system_prompt=generation.SYSTEM.value,
        seed=generation.SEED.value,
    )
    return Request(
        task=_TASK.value or generation.CHECKPOINT.value,
        limit=_LIMIT.value,
        settings=parse_settings(_SETTINGS.value),
        reward=_REWARD.value,
        data=data,
    )


def ks_from_flags() -> list[int]:
    try:
        ks = [int(k) for k in _K.value or [str(_N.value)]]
    except ValueError as error:
        raise UserError(f"--k is a number, or several with commas, got {_K.value}") from error
    if min(ks) < 1 or max(ks) > _N.value:
        raise UserError(
            f"--k must lie in 1..{_N.value}, the responses to a problem (--n), got {ks}"
        )
    return ks


@contextlib.contextmanager
def output_rows(path: str | None) -> Iterator:
    """A function that appends rows to the file, each batch at once; nothing without a path."""
    if path is None:
        yield lambda rows: None
        return
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error.strerror}") from error
    with file:

        def write(rows: Iterable[Row]) -> None:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            file.flush()

        yield write


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --task={argv[1]}")
    ks = ks_from_flags()
    baseline = read_rows(Path(_BASELINE.value)) if _BASELINE.value else []
    with generation.loaded_model(all_devices=True) as (model, tokenizer):
        evaluation = find_problems(request_from_flags(tokenizer))
        sampling = dataclasses.replace(
            generation.sampling_from(evaluation.sampling), group_size=_N.value
        )
        stop_ids = sampling.stop_ids or tokenizer.stop_ids
        batches = judged_responses(
            model,
            tokenizer,
            evaluation.problems,
            dataclasses.replace(sampling, stop_ids=stop_ids),
            evaluation.find_reward(),
            batch=_BATCH.value,
            key=jax.random.key(generation.SEED.value),
            episodes=evaluation.episodes,
        )
        rows: list[Row] = []
        with output_rows(_OUTPUT.value) as write:
            for batch in batches:
                write(batch)
                rows += batch
                _show_progress(rows, len(evaluation.problems))
    _warn_of_failures(rows)
    summaries = summarise(rows, ks, baseline)
    if _JSON.value:
        print(json.dumps({s.task: dataclasses.asdict(s) for s in summaries}))
    else:
        print(table(summaries))


def _show_progress(rows: list[Row], problems: int) -> None:
    solved = sum(row["solved"] for row in rows) / len(rows)
    done = len(rows) // _N.value
    print(f"{done}/{problems} problems, {solved:.3f} solved", file=sys.stderr, flush=True)


def _warn_of_failures(rows: list[Row]) -> None:
    errors = [row["error"] for row in rows if row["error"] is not None]
    if errors:
        print(
            f"{len(errors)} of {len(rows)} rewards failed and count as 0, the first: {errors[0]}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    configs.run(main)
