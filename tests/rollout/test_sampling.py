"""Sampled frequencies against the filtered softmax, computed here by a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmrl.rollout.sampling import SamplingConfig, draw, token_logprobs, truncate

LOGITS = np.asarray([1.5, -0.3, 0.8, 0.0, 2.1, -2.0, 1.4, 0.6])


def filtered(logits, temperature, top_k, top_p) -> np.ndarray:
    """Probabilities after top-k, then top-p on what is left, one token at a time."""
    probs = np.exp(logits / temperature)
    order = np.argsort(-probs)
    if top_k:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    reached, keep = 0.0, []
    for token in order:
        if reached >= top_p and keep:
            break
        keep.append(token)
        reached += probs[token]
    kept = np.zeros_like(probs)
    kept[keep] = probs[keep]
    return kept / kept.sum()


CASES = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.8), (1.3, 5, 0.7), (0.5, 2, 0.99)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_tokens_follow_the_filtered_softmax(temperature, top_k, top_p):
    """Chi-square over 20,000 draws; a wrong filter gives p-values far below the limit."""
    n = 20_000
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.random.split(jax.random.key(7), n)
    tokens, logprobs, _ = draw(jnp.tile(jnp.asarray(LOGITS, jnp.float32), (n, 1)), keys, sampling)
    expected = filtered(LOGITS, temperature, top_k, top_p)
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert stats.chisquare(counts[kept], n * expected[kept]).pvalue > 1e-4
    np.testing.assert_allclose(logprobs, np.log(expected[tokens]), atol=1e-5)


@pytest.mark.parametrize("vocabulary", [256, 700, 1024])
def test_tokens_of_several_blocks_follow_the_softmax(vocabulary):
    """Few likely ids stand in every block, beside many unlikely and some impossible ones."""
    logits = np.random.default_rng(vocabulary).normal(-6.0, 1.0, vocabulary)
    logits[::97] += 6.0
    logits[5::50] = -np.inf
    n = 50_000
    keys = jax.random.split(jax.random.key(3), n)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, vocabulary))
    tokens, *_ = draw(rows, keys, SamplingConfig())
    counts = np.bincount(tokens, minlength=vocabulary)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert counts[probabilities == 0].sum() == 0
    often = n * probabilities >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = n * np.append(probabilities[often], probabilities[~often].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_greedy_takes_the_most_probable_token():
    tokens, logprobs, support = draw(
        jnp.asarray(LOGITS, jnp.float32)[None], jax.random.split(jax.random.key(0), 1),
        SamplingConfig(temperature=0.0),
    )  # fmt: skip
    assert tokens.tolist() == [4] and support is None
    assert logprobs[0] == pytest.approx(np.log(filtered(LOGITS, 1.0, 0, 1.0)[4]), abs=1e-6)


def test_top_p_alone_keeps_no_more_than_the_nucleus_size():
    support = truncate(jnp.zeros((1, 100)), top_k=0, top_p=0.9, nucleus_size=10)
    assert support.shape == (1, 10) and (support >= 0).all()


def test_log_probabilities_are_those_of_the_support_only():
    """The trainer scores with the stored ids, whatever its own logits would have kept."""
    other = np.asarray([0.1, 0.2, -0.5, 3.0, 0.4, 2.0, 0.0, 1.0])
    support = np.asarray([[4, 0, 6, -1]])
    got = token_logprobs(jnp.asarray(other, jnp.float32)[None], jnp.asarray([6]), support, 0.5)
    kept = np.exp(other[[4, 0, 6]] / 0.5)
    assert got[0] == pytest.approx(np.log(kept[2] / kept.sum()), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(temperature=-1.0), "temperature must be 0"),
        (dict(top_p=0.0), r"top_p must lie in \(0, 1\]"),
        (dict(top_k=-1), "top_k must be 0"),
        (dict(group_size=0), "group_size must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)
