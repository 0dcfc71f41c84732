"""The distribution a token is drawn from: temperature, top-k and top-p, and its log-probabilities.

Truncated sampling changes the policy: a token that survives top-p is drawn with its probability
renormalised over the survivors. Scoring it under the full softmax would make the ratio of an
unchanged policy differ from 1. So the sampler keeps the ids of the survivors (the support) and the
trainer normalises over the same ids (`Decoder.token_logprobs`).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

BLOCK_IDS = 256  # near the root of a vocabulary's size, so that both picks are short


@dataclass(frozen=True)
class RepetitionStop:
    """Ends a response after `tokens` consecutive tokens, each of a probability above `probability`.

    MiniMax-M1 (arXiv 2506.13585): once a model repeats itself each of its tokens
    becomes nearly certain, whatever the pattern; 3,000 tokens above 0.99 end the generation. The
    paper does not say of which distribution the probability is. Here it is that of the drawn token
    in the distribution that it was drawn from: its behaviour log-probability.
    """

    tokens: int = 3000
    probability: float = 0.99

    def __post_init__(self):
        if self.tokens < 1 or not 0 < self.probability < 1:
            raise ValueError(
                "repetition_stop needs tokens of at least 1 and a probability in (0, 1), got "
                f"{self.tokens} and {self.probability}"
            )

    @property
    def logprob(self) -> np.float32:
        """The bound as log-probabilities are compared with it, on device and host alike."""
        return np.float32(math.log(self.probability))


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    `group_size` responses of at most `max_new_tokens` for each prompt. `temperature` 0 is greedy.
    `top_k` 0 and `top_p` 1 switch truncation off; together, top-p acts on what top-k left,
    renormalised. `nucleus_size` bounds the support that top-p alone may keep: the nucleus is cut to
    that many tokens, and the renormalisation counts only those. `repetition_stop` None is off.

    `compactions`: how often the rows that still run move together into half as many, once no more
    than that run, so that ended rows cost less; on a mesh, of each device's rows. Each compiles the
    decode step again.
    """

    group_size: int = 8
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    nucleus_size: int = 128
    stop_ids: tuple[int, ...] = ()
    repetition_stop: RepetitionStop | None = None
    compactions: int = 0

    def __post_init__(self):
        for name in ("group_size", "max_new_tokens", "nucleus_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.compactions < 0:
            raise ValueError(f"compactions must be 0 or more, got {self.compactions}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")

    @property
    def truncates(self) -> bool:
        """Whether a token's support is smaller than the vocabulary."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


def certain_streak(streak, logprobs, bound):
    """Consecutive tokens up to these that are more probable than the bound, from those before."""
    return (streak + 1) * (logprobs > bound)


def support_size(sampling: SamplingConfig) -> int:
    """The most ids that its truncation leaves, 0 without truncation."""
    return (sampling.top_k or sampling.nucleus_size) if sampling.truncates else 0


def truncate(logits: jax.Array, top_k: int, top_p: float, nucleus_size: int) -> jax.Array:
    """The ids that top-k and then top-p keep, most probable first, -1 padded.

    Args: logits [B, V], already divided by the temperature. Returns int32 [B, K] with K = top_k, or
    nucleus_size where only top-p truncates. Top-p keeps the fewest tokens whose probabilities reach
    it (Holtzman et al. 2019, arXiv 1904.09751), at least one.
    """
    size = min(top_k or nucleus_size, logits.shape[-1])
    values, ids = jax.lax.top_k(logits, size)
    if top_p >= 1:
        return ids
    total = jax.nn.logsumexp(values if top_k else logits, axis=-1, keepdims=True)
    probs = jnp.exp(values - total)
    before = jnp.cumsum(probs, axis=-1) - probs
    return jnp.where((before < top_p).at[:, 0].set(True), ids, -1)


def support_logits(logits: jax.Array, support: jax.Array) -> jax.Array:
    """The logits [..., V] of the ids in support [..., K]; -inf at its padding."""
    kept = jnp.take_along_axis(logits, jnp.maximum(support, 0), axis=-1)
    return jnp.where(support >= 0, kept, -jnp.inf)


def token_logprobs(
    logits: jax.Array, tokens: jax.Array, support: jax.Array | None, temperature: float
) -> jax.Array:
    """log p(token) under softmax(logits / temperature) over the support, or over all V ids.

    Args: logits [..., V] float32, tokens [...] int32, support [..., K] int32 or None. A temperature
    of 0 (greedy) scores under the untempered softmax. Where the support is empty, as in padding,
    the token is its only member.
    """
    logits = logits / (temperature or 1.0)
    if support is not None:
        first = jnp.where(support[..., 0] < 0, tokens, support[..., 0])
        support = jnp.concatenate([first[..., None], support[..., 1:]], axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    kept = logits if support is None else support_logits(logits, support)
    return chosen - jax.nn.logsumexp(kept, axis=-1)


def categorical(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """A token a row with probability softmax(logits), [B] int32, for keys [B] and logits [B, V].

    By inverse transform: one uniform number picks a block of ids, a second one an id in it. The
    Gumbel trick of `jax.random.categorical` needs V of them, which on a CPU take longer than the
    product with the head.
    """
    vocabulary = logits.shape[1]
    block = min(BLOCK_IDS, vocabulary)
    logits = jnp.pad(logits, ((0, 0), (0, -vocabulary % block)), constant_values=-jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True)).reshape(len(logits), -1, block)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)

    def pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
        """The first index where the running sum of weights [B, N] exceeds that share of it."""
        sums = jnp.cumsum(weights, axis=1)
        total = sums[:, -1]
        # A product that rounds up to the total would exceed every running sum.
        share = jnp.minimum(uniform * total, jnp.nextafter(total, 0))
        return jnp.argmax(sums > share[:, None], axis=1)

    blocks = pick(weights.sum(axis=2), uniform[:, 0])
    within = pick(jnp.take_along_axis(weights, blocks[:, None, None], axis=1)[:, 0], uniform[:, 1])
    return (blocks * block + within).astype(jnp.int32)


def draw(
    logits: jax.Array, keys: jax.Array, sampling: SamplingConfig
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Draws a token a row: tokens [B], their log-probabilities [B], and the support [B, K] or None.

    Args: logits [B, V] float32, keys [B] of the rows' own generators, so that a row's tokens do not
    depend on the batch around it.
    """
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, token_logprobs(logits, tokens, None, 0.0), None
    scaled = logits / sampling.temperature
    if not sampling.truncates:
        tokens = categorical(keys, scaled)
        return tokens, token_logprobs(logits, tokens, None, sampling.temperature), None
    support = truncate(scaled, sampling.top_k, sampling.top_p, sampling.nucleus_size)
    tokens = _draw_from(support, keys, scaled)
    return tokens, token_logprobs(logits, tokens, support, sampling.temperature), support


def _draw_from(support: jax.Array, keys: jax.Array, logits: jax.Array) -> jax.Array:
    index = categorical(keys, support_logits(logits, support))
    return jnp.take_along_axis(support, index[:, None], axis=-1)[:, 0]


def draw_rows(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    nucleus_size: jax.Array,
    size: int,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """As `draw`, with settings [B] of each row's own; the support is [B, size], None for size 0.

    `size` is at least what any row's support may have. A row that does not truncate has an empty
    support, which means all ids.
    """
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if not size:
        tokens = jnp.where(greedy, best, categorical(keys, scaled))
        return tokens, token_logprobs(scaled, tokens, None, 1.0), None
    truncates = ~greedy & ((top_k > 0) | (top_p < 1))
    size = min(size, logits.shape[-1])
    values, ids = jax.lax.top_k(scaled, size)
    ranked = jnp.arange(size) < jnp.where(top_k > 0, top_k, nucleus_size)[:, None]
    kept = jnp.where(ranked, values, -jnp.inf)
    total = jnp.where(top_k > 0, jax.nn.logsumexp(kept, axis=-1), jax.nn.logsumexp(scaled, axis=-1))
    probs = jnp.exp(kept - total[:, None])
    inside = (jnp.cumsum(probs, axis=-1) - probs < top_p[:, None]).at[:, 0].set(True)
    # Without top-p all that top-k ranked is kept, whatever the rounding of the sum.
    inside = ranked & (inside | (top_p >= 1)[:, None])
    support = jnp.where(inside, ids, -1)
    tokens = jnp.where(truncates, _draw_from(support, keys, scaled), categorical(keys, scaled))
    tokens = jnp.where(greedy, best, tokens)
    logprobs = jnp.where(
        truncates,
        token_logprobs(scaled, tokens, support, 1.0),
        token_logprobs(scaled, tokens, None, 1.0),
    )
    return tokens, logprobs, jnp.where(truncates[:, None], support, -1)
