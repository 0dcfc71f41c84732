"""Runs a reward function over samples: concurrently, in order, and never hanging the run."""

import asyncio
import collections
import contextlib
import importlib
import inspect
import math
import numbers
import pkgutil
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.data.records import Sample
from mmrl.errors import UserError, nearest

Outcome = float | Mapping[str, float]
Reward = Callable[[Sample], Outcome | Awaitable[Outcome]]


@dataclass(frozen=True)
class RewardResult:
    """Reward of one sample; on failure `error` says why and `value` is 0."""

    value: float = 0.0
    components: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def resolve(path: str, what: str = "reward") -> Callable[..., Any]:
    """The function at `package.module:function` or `package.module.function`.

    Raises `UserError` if the module or the function does not exist, naming the nearest one and
    `what` it should be. What the module itself raises when it is imported is passed on.
    """
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise UserError(f"{what} {path!r} must be written package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):
            raise
        raise UserError(f"{what} {path!r}: no module {missing}.{_sibling(missing)}") from None
    function = getattr(module, name, None)
    if function is None or (what != "tool" and not callable(function)):
        valid = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(
            f"{what} {path!r}: {module_name} has no function {name}.{nearest(name, valid)}"
        )
    return function


def score(
    samples: Sequence[Sample],
    reward_function: Reward,
    *,
    timeout_seconds: float = 60.0,
    max_workers: int = 16,
) -> list[RewardResult]:
    """`reward_function` of each sample, in the order of the samples.

    The function returns a finite number, or a dict of them whose value is under "reward", or
    "score" without that; all are kept as components. It may be async. An exception, another kind
    of value, or more than `timeout_seconds` for a sample, marks that sample alone.

    At most `max_workers` calls run at once, in daemon threads: a call that never returns is left
    behind, keeps its thread, and does not delay the end of the program. Threads cannot interrupt
    C code that holds the interpreter lock (a runaway regular expression): let such a reward start
    a process of its own.
    """
    if timeout_seconds <= 0 or max_workers < 1:
        limits = f"timeout_seconds={timeout_seconds}, max_workers={max_workers}"
        raise UserError(f"rewards need timeout_seconds > 0 and max_workers >= 1, got {limits}")
    pending = collections.deque(range(len(samples)))
    finished: queue.SimpleQueue[tuple[int, RewardResult]] = queue.SimpleQueue()
    running: dict[int, float] = {}  # sample: time of its start
    abandoned: set[int] = set()
    results: dict[int, RewardResult] = {}
    late = RewardResult(error=f"TimeoutError: {_no_reward_within(timeout_seconds)}")

    def work() -> None:
        index = -1
        with contextlib.suppress(IndexError):  # no sample is pending
            while index not in abandoned:
                index = pending.popleft()
                running[index] = time.monotonic()
                finished.put((index, _evaluate(reward_function, samples[index], timeout_seconds)))

    def start_worker() -> None:
        threading.Thread(target=work, name="reward", daemon=True).start()

    for _ in range(min(max_workers, len(samples))):
        start_worker()
    while len(results) < len(samples):
        now = time.monotonic()
        oldest = min(running.copy().values(), default=now)
        try:
            index, result = finished.get(timeout=max(0.0, oldest + timeout_seconds - now))
            running.pop(index, None)
            results.setdefault(index, result)
        except queue.Empty:
            now = time.monotonic()
            for index in [i for i, t in running.copy().items() if t + timeout_seconds <= now]:
                del running[index]
                abandoned.add(index)
                results[index] = late
                start_worker()
    return [results[index] for index in range(len(samples))]


def _no_reward_within(timeout_seconds: float) -> str:
    return f"no reward within {timeout_seconds:g} s"


def _evaluate(reward_function: Reward, sample: Sample, timeout_seconds: float) -> RewardResult:
    """Calls the reward; whatever it raises, SystemExit too, is this sample's error."""
    try:
        outcome = reward_function(sample)
        if inspect.isawaitable(outcome):
            outcome = asyncio.run(_await(outcome, timeout_seconds))
        return to_result(outcome)
    except BaseException as error:  # noqa: BLE001
        return RewardResult(error=f"{type(error).__name__}: {error}")


async def _await(outcome: Awaitable[Outcome], timeout_seconds: float) -> Outcome:
    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            return await outcome
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(_no_reward_within(timeout_seconds)) from error
        raise


def to_result(outcome: Any) -> RewardResult:
    """What a reward returned. Raises ValueError for what is no finite number or dict of them."""
    if not isinstance(outcome, Mapping):
        return RewardResult(_number(outcome, "the reward"))
    components = {str(key): _number(value, f"{key!r}") for key, value in outcome.items()}
    for key in ("reward", "score"):
        if key in components:
            return RewardResult(components[key], components)
    raise ValueError(f"a reward dict needs the key 'reward' or 'score', got {list(outcome)}")


def _number(value: Any, name: str) -> float:
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r} ({type(value).__name__})")
    return float(value)


def _sibling(module_name: str) -> str:
    """Hint at the nearest module that lies beside the missing `module_name`."""
    parent, _, _ = module_name.rpartition(".")
    path = importlib.import_module(parent).__path__ if parent else None
    prefix = f"{parent}." if parent else ""
    return nearest(module_name, [module.name for module in pkgutil.iter_modules(path, prefix)])
