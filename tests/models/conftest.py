"""The model and the tokens that the decoder's tests share."""

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.models import Decoder


@pytest.fixture(scope="session")
def hybrid() -> Decoder:
    return Decoder(HYBRID, nnx.Rngs(0))


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.asarray(jax.random.randint(jax.random.key(1), (3, 21), 0, HYBRID.vocab_size))
