import dataclasses

import pytest

from mmrl import config as configs
from mmrl.data import Sample
from mmrl.rewards import WeightedReward, mixture, reward_of, score

PLAIN = "rewards.reward_functions:length"
DETAILED = "rewards.reward_functions:detailed"
ASYNC = "rewards.reward_functions:slow_async"


def one(reward, **sample):
    [result] = score([Sample(**sample)], reward)
    return result


def test_the_value_is_the_weighted_sum_and_every_component_is_kept():
    reward = mixture(
        [
            WeightedReward(PLAIN, 0.5),
            WeightedReward(DETAILED, 2.0, settings={"right": "yes"}, name="answer"),
            WeightedReward(ASYNC, -1.0),
        ]
    )
    result = one(reward, response="yes")
    assert result.value == pytest.approx(0.5 * 3 + 2.0 * 0.7 - 1.0 * 4)
    assert result.components == {
        "reward": result.value,
        "solved": 1.0,
        "rewards.reward_functions.length": 3.0,
        "answer": 0.7,
        "answer/detail": 9.0,
        "rewards.reward_functions.slow_async": 4.0,
        "rewards.reward_functions.slow_async/score": 4.0,
    }


def test_paths_with_weights_are_a_mixture_too():
    assert one(mixture({PLAIN: 2.0}), response="abc").value == 6.0


def test_values_beyond_the_bounds_are_clipped_in_the_sum_and_logged_as_they_are():
    parts = [WeightedReward(PLAIN, 1.0, bounds=(-1.0, 2.0), name="short")]
    result = one(mixture(parts), response="abcdef")
    assert result.value == 2.0 and result.components["short"] == 6.0


def test_async_parts_run_beside_each_other():
    parts = [WeightedReward("rewards.reward_functions:meets", name=name) for name in "ab"]
    sample = Sample(metadata={"meeting": []})
    [result] = score([sample], mixture(parts), timeout_seconds=5)
    assert result.error is None and result.value == 2.0


def test_a_part_that_fails_marks_the_sample_and_is_named():
    parts = {PLAIN: 1.0, "rewards.reward_functions:fails_on_b": 1.0}
    good, bad = score([Sample(response="a"), Sample(response="b")], mixture(parts))
    assert good.error is None and good.value == 2.0
    assert "rewards.reward_functions.fails_on_b: KeyError" in bad.error and bad.value == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one"),
        ([WeightedReward(PLAIN), WeightedReward(PLAIN)], "different names.*functions.length"),
        ([WeightedReward("rewards.reward_functions:lenght")], "Did you mean length"),
        ([WeightedReward(DETAILED)], "missing a required argument: 'right'"),
        ([WeightedReward(PLAIN, settings={"n": 1})], "unexpected keyword argument 'n'"),
    ],
)
def test_parts_that_cannot_work_are_refused_before_the_run(parts, message):
    with pytest.raises(ValueError, match=message):
        mixture(parts)


def test_bounds_that_are_upside_down_are_refused():
    with pytest.raises(ValueError, match="bounds must be"):
        WeightedReward(PLAIN, bounds=(1.0, 0.0))


def test_a_path_alone_is_no_mixture():
    from rewards import reward_functions

    assert reward_of(PLAIN) is reward_functions.length


def test_a_config_names_a_mixture_and_its_weights_on_the_command_line():
    """The forms that `TrainConfig.reward` takes: a path, parts, parts of a saved config."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        reward: str | tuple[WeightedReward, ...] = PLAIN

    parts = (WeightedReward(PLAIN), WeightedReward(DETAILED, settings={"right": "x"}))
    config = Config(parts)
    configs.validate(config)
    changed = configs.override(config, {"reward.1.weight": "0.25"})
    assert changed.reward[1] == dataclasses.replace(parts[1], weight=0.25)
    assert configs.from_dict(Config, configs.to_dict(changed)) == changed
    assert configs.override(config, {"reward": DETAILED}).reward == DETAILED
