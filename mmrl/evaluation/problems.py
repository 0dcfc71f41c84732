"""The problems that an evaluation asks: a generated task, a file, or what a run was trained on."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import config as configs
from mmrl import slime
from mmrl.data import DataConfig, Example, examples
from mmrl.data.files import SUFFIXES, split_slice
from mmrl.errors import UserError, nearest, user_mistakes
from mmrl.rewards.mixture import RewardSpec
from mmrl.rewards.runner import Reward
from mmrl.rewards.slime_functions import Arguments, reward_function
from mmrl.rollout import SamplingConfig
from mmrl.training.config import TrainConfig
from mmrl.training.run import held_out_examples

DEFAULT_PROBLEMS = 128
MATHS = "mmrl.rewards.maths:score"
REASONING_GYM = "mmrl.rewards.reasoning_gym:score"


@dataclass(frozen=True)
class Problem:
    """One prompt; `index` counts the problems of its `task`."""

    task: str
    index: int
    example: Example


@dataclass(frozen=True)
class Evaluation:
    """What to ask, the import path of the reward that judges, and how to sample by default.

    `arguments` and `reward_key` are for a reward that was written for slime. `episodes` is the
    config of a run whose responses are episodes.
    """

    problems: tuple[Problem, ...]
    reward: RewardSpec
    sampling: SamplingConfig = SamplingConfig(group_size=1, max_new_tokens=512)
    arguments: Arguments = dataclasses.field(default_factory=Arguments)
    reward_key: str | None = None
    episodes: TrainConfig | None = None

    def find_reward(self) -> Reward:
        return reward_function(self.reward, self.arguments, self.reward_key)


@dataclass(frozen=True)
class Request:
    """What a user asks to evaluate.

    task       names of reasoning-gym datasets with commas between them, a .jsonl or .parquet file
               (`path@[a:b]` for some of its rows), or a run directory
    limit      problems of each dataset or file; None is 128 generated ones, or all of a file
    settings   reasoning_gym: settings of the dataset, or {name: settings} of several
    reward     import path; None is the dataset's own verifier, and mathematics for a file
    data       keys of a file, the suffix of the prompts, whether they are chat messages, the seed
    """

    task: str
    limit: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reward: str | None = None
    data: DataConfig = DataConfig()


def find_problems(request: Request) -> Evaluation:
    """The problems of a request. Raises UserError for what does not exist or does not fit."""
    path, _ = split_slice(request.task)
    is_file = path.suffix in SUFFIXES
    is_directory = (path / "config.json").is_file()
    if request.settings and (is_file or is_directory):
        raise UserError(f"--settings are for datasets of reasoning_gym, and the task is {path}")
    if is_file:
        return _of_file(request, path)
    if is_directory:
        return _of_run(request, path)
    if path.is_dir() or "/" in request.task:
        raise UserError(
            f"the task {request.task} is no run directory with a config.json, no "
            f"{' or '.join(SUFFIXES)} file and no dataset of reasoning_gym"
        )
    return _of_datasets(request)


def _of_datasets(request: Request) -> Evaluation:
    names = [name.strip() for name in request.task.split(",")]
    by_name = set(request.settings) <= set(names) and bool(request.settings)
    if request.settings and not by_name and len(names) > 1:
        unknown = next(name for name in request.settings if name not in names)
        raise UserError(
            f"--settings of several datasets are {{name: settings}}; {unknown} is none of "
            f"{', '.join(names)}.{nearest(unknown, names)}"
        )
    problems: list[Problem] = []
    limit = request.limit or DEFAULT_PROBLEMS
    for name in names:
        settings = request.settings.get(name, {}) if by_name else request.settings
        data = dataclasses.replace(
            request.data,
            source="reasoning_gym",
            datasets={name: dict(settings)},
            size=limit,
            split="held_out",
        )
        dataset = examples(data)
        problems += [Problem(name, index, dataset[index]) for index in range(limit)]
    return Evaluation(tuple(problems), request.reward or REASONING_GYM)


def _of_file(request: Request, path: Path) -> Evaluation:
    if request.reward is None and request.data.label_key is None:
        raise UserError(f"{path} has no labels to judge by: give --label_key or --reward")
    dataset = examples(dataclasses.replace(request.data, source=request.task))
    count = min(request.limit or len(dataset), len(dataset))
    problems = [Problem(path.stem, index, dataset[index]) for index in range(count)]
    return Evaluation(tuple(problems), request.reward or MATHS)


def _of_run(request: Request, path: Path) -> Evaluation:
    """The held-out problems, the reward and the sampling of a run directory."""
    config = configs.load_json(TrainConfig, path / "config.json")
    evaluation = config.evaluation
    if request.limit is not None:
        evaluation = dataclasses.replace(evaluation, prompts=request.limit)
    with user_mistakes():
        found = held_out_examples(dataclasses.replace(config, evaluation=evaluation))
    if not found:
        raise UserError(
            f"{path} was trained on a file and names no held-out rows (config.evaluation.data): "
            "give the file as --task"
        )
    counts: dict[str, int] = {}
    problems = []
    for example in found:
        names = example.metadata.get("dataset", path.name), example.metadata.get("mode")
        task = ", ".join(filter(None, names))
        problems.append(Problem(task, counts.setdefault(task, 0), example))
        counts[task] += 1
    sampling = dataclasses.replace(
        config.sampling, group_size=1, temperature=evaluation.temperature
    )
    if config.group_reward and request.reward is None:
        raise UserError(
            f"{path} was trained on a reward of whole groups, which judges no single response: "
            "give --reward"
        )
    judged = request.reward or config.reward
    return Evaluation(
        tuple(problems),
        judged,
        sampling,
        slime.arguments(config),
        config.reward_key,
        config if config.has_episodes else None,
    )


def parse_settings(text: str) -> dict[str, Any]:
    """The JSON object of --settings."""
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise UserError(f"--settings is not JSON ({error}): {text}") from error
    if not isinstance(settings, dict):
        raise UserError(f"--settings must be a JSON object, got {text}")
    return settings
