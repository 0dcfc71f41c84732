import asyncio
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmrl.data import Sample
from mmrl.rewards import RewardResult, resolve, score


def samples(count):
    return [Sample(index=index) for index in range(count)]


def values(results):
    assert all(result.error is None for result in results)
    return [result.value for result in results]


def slow_first(sample):
    time.sleep(0.05 if sample.index == 0 else 0.0)
    return sample.index


async def slow_first_async(sample):
    await asyncio.sleep(0.05 if sample.index == 0 else 0.0)
    return sample.index


@pytest.mark.parametrize("reward", [slow_first, slow_first_async])
@pytest.mark.parametrize("max_workers", [1, 3, 50])
def test_results_keep_the_order_of_the_samples(reward, max_workers):
    assert values(score(samples(20), reward, max_workers=max_workers)) == list(range(20))


def test_no_samples_give_no_results():
    assert score([], slow_first) == []


@pytest.mark.parametrize("is_async", [False, True])
def test_max_workers_calls_run_at_once(is_async):
    """Each call waits for seven others: with eight workers all finish, and never nine run."""
    barrier = threading.Barrier(8)
    lock, running, most = threading.Lock(), 0, 0

    def reward(sample):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(timeout=10)
        with lock:
            running -= 1
        return 1.0

    async def async_reward(sample):
        return reward(sample)

    results = score(samples(32), async_reward if is_async else reward, max_workers=8)
    assert values(results) == [1.0] * 32
    assert most == 8


def forever(sample):
    while sample.index in (1, 2):
        time.sleep(0.01)
    return 1.0


async def forever_async(sample):
    if sample.index in (1, 2):
        await asyncio.Event().wait()
    return 1.0


async def forever_blocking(sample):
    return forever(sample)


@pytest.mark.parametrize("reward", [forever, forever_async, forever_blocking])
@pytest.mark.parametrize("max_workers", [1, 4])
def test_a_call_that_never_returns_marks_only_its_sample(reward, max_workers):
    begun = time.monotonic()
    results = score(samples(30), reward, timeout_seconds=1, max_workers=max_workers)
    assert time.monotonic() - begun < 10
    late = RewardResult(0.0, {}, "TimeoutError: no reward within 1 s")
    assert results == [late if index in (1, 2) else RewardResult(1.0) for index in range(30)]


def test_the_time_limit_counts_from_the_start_of_a_call_not_of_the_batch():
    def reward(sample):
        time.sleep(0.1)
        return 1.0

    assert values(score(samples(10), reward, timeout_seconds=0.6, max_workers=1)) == [1.0] * 10


def test_a_late_result_does_not_replace_the_timeout():
    release = threading.Event()

    def reward(sample):
        if sample.index == 0:
            release.wait()
        else:
            time.sleep(0.2)
            release.set()
            time.sleep(0.2)
        return 1.0

    late, on_time = score(samples(2), reward, timeout_seconds=0.15, max_workers=1)
    assert "TimeoutError" in late.error and late.value == 0.0
    assert "TimeoutError" in on_time.error


def test_an_async_call_beyond_the_limit_is_cancelled():
    cancelled = threading.Event()

    async def reward(sample):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    [late] = score(samples(1), reward, timeout_seconds=0.1)
    assert late.error == "TimeoutError: no reward within 0.1 s"
    assert cancelled.wait(timeout=10)


def test_a_worker_that_comes_back_late_does_not_work_beside_its_replacement():
    lock, running, most = threading.Lock(), 0, 0

    def reward(sample):
        nonlocal running, most
        if sample.index == 0:
            time.sleep(1.3)
            return 1.0
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return 1.0

    late, *others = score(samples(30), reward, timeout_seconds=1, max_workers=1)
    assert "TimeoutError" in late.error and len(values(others)) == 29
    assert most == 1


def test_a_call_that_never_returns_does_not_hold_up_the_end_of_the_program():
    program = (
        "import time\n"
        "from mmrl.data import Sample\n"
        "from mmrl.rewards import score\n"
        "def reward(sample):\n"
        "    while True: time.sleep(0.01)\n"
        "print(score([Sample()], reward, timeout_seconds=0.1)[0].error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "TimeoutError: no reward within 0.1 s\n"


class Unhappy(Exception):
    pass


@pytest.mark.parametrize("error", [Unhappy("bad"), SystemExit("bad"), TimeoutError("bad")])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_marks_only_its_sample(error, is_async):
    def reward(sample):
        if sample.index == 1:
            raise error
        return 2.0

    async def async_reward(sample):
        return reward(sample)

    results = score(samples(3), async_reward if is_async else reward)
    failed = RewardResult(error=f"{type(error).__name__}: bad")
    assert results == [RewardResult(2.0), failed, RewardResult(2.0)]


@pytest.mark.parametrize(
    ("outcome", "value", "components"),
    [
        (1, 1.0, {}),
        (True, 1.0, {}),
        (np.float32(0.5), 0.5, {}),
        (np.bool_(True), 1.0, {}),
        (np.asarray(0.25), 0.25, {}),
        ({"reward": 2, "solved": False}, 2.0, {"reward": 2.0, "solved": 0.0}),
        ({"score": 3}, 3.0, {"score": 3.0}),
        ({"score": 3, "reward": 1}, 1.0, {"score": 3.0, "reward": 1.0}),
    ],
)
def test_numbers_and_dicts_of_numbers_are_rewards(outcome, value, components):
    [result] = score(samples(1), lambda sample: outcome)
    assert result == RewardResult(value, components, None)
    assert type(result.value) is float


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "the reward must be a finite number, got None"),
        ("1.0", "the reward must be a finite number, got '1.0'"),
        (float("nan"), "the reward must be a finite number, got nan"),
        (np.float32("inf"), "the reward must be a finite number, got inf"),
        (np.ones(2), "the reward must be a finite number"),
        ({"reward": float("-inf")}, "'reward' must be a finite number, got -inf"),
        ({"reward": 1.0, "note": "x"}, "'note' must be a finite number, got 'x'"),
        ({"solved": 1.0}, "needs the key 'reward' or 'score', got ['solved']"),
    ],
)
def test_other_values_mark_the_sample(outcome, message):
    bad, good = score(samples(2), lambda sample: outcome if sample.index == 0 else 1.0)
    assert message in bad.error and bad.value == 0.0 and bad.components == {}
    assert good == RewardResult(1.0)


@pytest.mark.parametrize("limits", [{"timeout_seconds": 0}, {"max_workers": 0}])
def test_limits_under_which_nothing_could_run_are_refused(limits):
    with pytest.raises(ValueError, match="timeout_seconds > 0 and max_workers >= 1"):
        score(samples(1), slow_first, **limits)


@pytest.mark.parametrize("separator", [":", "."])
def test_a_reward_is_found_by_its_import_path(separator):
    reward = resolve(f"rewards.reward_functions{separator}exact_match")
    assert reward(Sample(response="a", label="a")) == 1.0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("score", "package.module:function"),
        (
            "mmrl.rewards.reasoning_gim:score",
            "no module mmrl.rewards.reasoning_gim. .* mmrl.rewards.reasoning_gym",
        ),
        ("mmrl.reward.reasoning_gym:score", "no module mmrl.reward. Did you mean mmrl.rewards"),
        ("rewards.reward_functions:exact_mach", "no function exact_mach. Did you mean exact_match"),
        ("rewards.reward_functions:NOT_A_FUNCTION", "no function NOT_A_FUNCTION"),
    ],
)
def test_a_path_that_leads_nowhere_names_the_nearest(path, message):
    with pytest.raises(ValueError, match=message):
        resolve(path)


def test_what_a_reward_module_raises_on_import_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        resolve("needs_more:reward")
