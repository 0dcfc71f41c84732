"""Functions written for slime, as slime calls them: rewards, rewards of groups, group filters.

    async def reward(args, sample, **kwargs) -> float | dict       --custom-rm-path
    async def reward(args, samples, **kwargs) -> list of them      with --group-rm
    def keep(args, samples, **kwargs) -> bool or what has .keep    --dynamic-sampling-filter-path

`args` are slime's arguments under slime's names, `sample` is a `mmrl.data.Sample`, whose fields
have slime's names too. Any of the functions may be async.

Such files import `Sample` from slime. Where slime is not installed, `provide_slime` gives these
imports what stands for them here, and nothing else of slime: any other import fails as ever.
"""

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import numbers
import statistics
import sys
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.data.records import Sample, Status
from mmrl.errors import nearest
from mmrl.rewards.mixture import RewardSpec, mixture
from mmrl.rewards.runner import Reward, RewardResult, resolve, score, to_result
from mmrl.rl.advantages import MIN_STD

Filter = Callable[[list[Sample]], bool]


@dataclass
class DynamicFilterOutput:
    """What a filter says of a group; `keep_when_insufficient` fills the batch up with it."""

    keep: bool
    reason: str | None = None
    keep_when_insufficient: bool = False


class Arguments(types.SimpleNamespace):
    """slime's `args`; what mmrl has no setting for is an AttributeError that says so."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"args.{name}: mmrl gives functions written for slime the arguments "
            f"{', '.join(sorted(vars(self)))}.{nearest(name, vars(self))}"
        )


def takes_arguments(function: Callable[..., Any]) -> bool:
    """Whether the function has slime's signature: two parameters or more must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) >= 2


def find_function(path: str, arguments: Arguments) -> Callable[..., Any]:
    """The function at `path`, as `mmrl.rewards.resolve` finds it; slime's gets its `args`."""
    provide_slime()
    function: Callable[..., Any] = resolve(path)
    return functools.partial(function, arguments) if takes_arguments(function) else function


def reward_function(spec: RewardSpec, arguments: Arguments, key: str | None = None) -> Reward:
    """The reward that a config names: a function of either signature, or a mixture.

    `key` names the entry of a returned dict that is the reward (slime's --reward-key); entries
    that are no numbers are left out then, as in slime they may be anything.
    """
    if not isinstance(spec, str):
        return mixture(spec)
    function = find_function(spec, arguments)
    return function if key is None else functools.partial(_keyed, function, key)


async def _keyed(function: Callable[..., Any], key: str, sample: Sample) -> dict[str, float]:
    outcome = await _awaited(function(sample))
    return _entries(outcome, key)


def _entries(outcome: Any, key: str) -> dict[str, float]:
    if not isinstance(outcome, Mapping) or key not in outcome:
        raise ValueError(f"the reward must be a dict with the key {key!r}, got {outcome!r}")
    numeric = {k: float(v) for k, v in outcome.items() if isinstance(v, numbers.Real)}
    return numeric | {"reward": outcome[key]}


async def _awaited(outcome: Any) -> Any:
    return await outcome if isinstance(outcome, Awaitable) else outcome


def score_groups(
    samples: Sequence[Sample],
    function: Callable[..., Any],
    *,
    group_size: int,
    key: str | None = None,
    timeout_seconds: float = 60.0,
    max_workers: int = 16,
) -> list[RewardResult]:
    """As `mmrl.rewards.score` for a function of whole groups, which gives a list of rewards.

    What fails, fails its group.
    """
    groups = [list(samples[i : i + group_size]) for i in range(0, len(samples), group_size)]
    results: dict[int, list[RewardResult]] = {}

    async def judge(index: int) -> float:
        outcomes = await _awaited(function(groups[index]))
        if not isinstance(outcomes, Sequence) or len(outcomes) != group_size:
            raise ValueError(f"a group's rewards must be a list of {group_size}, got {outcomes!r}")
        results[index] = [to_result(_entries(o, key) if key else o) for o in outcomes]
        return 0.0

    judged = score(
        range(len(groups)),  # type: ignore[arg-type]
        judge,  # type: ignore[arg-type]
        timeout_seconds=timeout_seconds,
        max_workers=max_workers,
    )
    return [
        result
        for index, whole in enumerate(judged)
        for result in ([whole] * group_size if whole.error else results[index])
    ]


def find_filter(path: str, arguments: Arguments) -> Filter:
    """Whether to keep a group, by the function at `path`; its samples have their rewards."""
    function = find_function(path, arguments)

    def keep(samples: list[Sample]) -> bool:
        output = asyncio.run(_awaited(function(samples)))
        return bool(getattr(output, "keep", output))

    return keep


def provide_slime(further: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Makes slime's record types importable from where slime has them, if slime is not there.

    `further` are other modules to be there, {name: its contents}.
    """
    if further and isinstance(sys.modules.get("slime"), _Provided):
        _provide(further)
    if "slime.utils.types" in sys.modules:
        return
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec("slime.utils.types") is not None:
            return
    contents: dict[str, dict[str, Any]] = {
        "slime": {},
        "slime.utils": {},
        "slime.utils.types": {"Sample": Sample},
        "slime.rollout": {},
        "slime.rollout.filter_hub": {},
        "slime.rollout.filter_hub.base_types": {"DynamicFilterOutput": DynamicFilterOutput},
        "slime.rollout.filter_hub.dynamic_sampling_filters": {
            "check_reward_nonzero_std": check_reward_nonzero_std
        },
    }
    _provide(contents | dict(further or {}))


class _Provided(types.ModuleType):
    """A module that stands for one of slime's."""


def _provide(contents: Mapping[str, Mapping[str, Any]]) -> None:
    for name, content in contents.items():
        module = _Provided(name, "What mmrl has of slime's module of this name.")
        vars(module).update(content, __path__=[])
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def check_reward_nonzero_std(
    args: Any, samples: list[Sample], **kwargs: Any
) -> DynamicFilterOutput:
    """slime's filter of this name: keeps a group whose rewards differ. Failed samples do not count.

    slime takes the unbiased deviation; where it is 0 so is the population's.
    """
    rewards = [s.get_reward_value(args) for s in samples if s.status != Status.FAILED]
    keep = len(rewards) > 1 and statistics.stdev(rewards) > MIN_STD
    return DynamicFilterOutput(keep, None if keep else "zero_std")
