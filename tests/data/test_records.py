import dataclasses
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.data import Example, Sample, Status

CODES = {"pending": 0, "completed": 1, "truncated": 2, "aborted": 3, "failed": 4}


def test_status_is_an_int_in_arrays_and_a_string_as_value():
    assert {status.value: int(status) for status in Status} == CODES
    for name, code in CODES.items():
        assert Status(name) is Status(code) is Status(np.int32(code)) is Status[name.upper()]
        assert pickle.loads(pickle.dumps(Status(code))) is Status(code)
    with pytest.raises(ValueError):
        Status(5)
    array = jnp.where(jnp.arange(3) > 1, Status.TRUNCATED, Status.COMPLETED)
    assert array.tolist() == [1, 1, 2]
    assert (array == Status.TRUNCATED).tolist() == [False, False, True]


def test_samples_share_no_mutable_state_and_examples_are_frozen():
    first, second = Sample(), Sample()
    first.tokens.append(3)
    first.metadata["a"] = 1
    assert second.tokens == [] and second.metadata == {} and second.status is Status.PENDING
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("a").prompt = "b"
