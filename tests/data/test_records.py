import dataclasses
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.data import Example, Sample, Status, prompt_tokens
from mmrl.errors import UserError
from mmrl.text import CharTokenizer

CODES = {  # slime's, the limits that only episodes have, and the early stop
    "pending": 0,
    "completed": 1,
    "truncated": 2,
    "aborted": 3,
    "failed": 4,
    "turn_limit": 5,
    "turn_token_limit": 6,
    "tool_time_limit": 7,
    "time_limit": 8,
    "repetition": 9,
}


def test_status_is_an_int_in_arrays_and_a_string_as_value():
    assert {status.value: int(status) for status in Status} == CODES
    for name, code in CODES.items():
        assert Status(name) is Status(code) is Status(np.int32(code)) is Status[name.upper()]
        assert pickle.loads(pickle.dumps(Status(code))) is Status(code)
    with pytest.raises(ValueError):
        Status(10)
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


def test_a_text_prompt_is_encoded_as_it_is_and_messages_need_a_template():
    tokenizer = CharTokenizer("ab")
    assert prompt_tokens(Example("ab"), tokenizer) == [3, 4]
    messages = [{"role": "user", "content": "ab"}]
    with pytest.raises(
        UserError, match=r"no chat template: set tokenizer.template.*'content': 'ab'"
    ):
        prompt_tokens(Example(messages), tokenizer)
