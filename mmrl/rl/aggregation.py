"""How much each token counts in the loss.

Every objective is `sum(weights * token_loss)`. The denominators depend on the whole optimizer
batch, so weights are computed once for it and sliced along with the data: the losses and
gradients of micro-batches then add up to those of the batch exactly, however it is cut.
"""

import difflib

import jax
import jax.numpy as jnp

AGGREGATIONS = ("group", "batch", "sample", "constant", "combined")


def token_weights(
    mask: jax.Array,
    aggregation: str,
    *,
    max_length: int | None = None,
    sample_fraction: float = 0.5,
) -> jax.Array:
    """Weight of each token, [P, G, T] like `mask` (also [G, T], one group, and [T], one sample).

    With n_i the tokens of sample i that `mask` keeps:

    - "group": 1 / sum of n_i over the token's group, mean over prompts. MiniMax-M1
      (arXiv 2506.13585 eq. 4) and DAPO (arXiv 2503.14476 eq. 8) as printed; ScaleRL's choice.
    - "batch": 1 / sum of n_i over the batch: every token alike. What most code bases call
      token-mean (verl, TRL's DAPO and CISPO, slime's --calculate-per-token-loss).
    - "sample": 1 / n_i, mean over samples. GRPO (arXiv 2402.03300 eq. 3); slime's default.
    - "constant": 1 / `max_length`, mean over samples: no length bias. Dr. GRPO (arXiv 2503.20783).
      `max_length` None means T, so pad every batch alike or give it. 1 sums a sample's tokens.
    - "combined": `sample_fraction` of "sample" and the rest of "group". MiniMax-M1 says only that
      it combined "sample-level loss and token-level normalization" against late collapse; this
      mixture is one reading of that. UNCONFIRMED: neither form nor fraction is published.

    Samples and groups without a kept token count in no mean. All but "constant" sum to 1.

    Raises:
        ValueError: unknown aggregation.
    """
    keep = (mask > 0).astype(jnp.promote_types(jnp.asarray(mask).dtype, jnp.float32))
    if aggregation == "group":
        per_group = keep.sum(tuple(range(-min(keep.ndim, 2), 0)), keepdims=True)
        return keep / _at_least_1(per_group) / _at_least_1((per_group > 0).sum())
    if aggregation == "batch":
        return keep / _at_least_1(keep.sum())
    per_sample = keep.sum(-1, keepdims=True)
    samples = _at_least_1((per_sample > 0).sum())
    if aggregation == "sample":
        return keep / _at_least_1(per_sample) / samples
    if aggregation == "constant":
        return keep / (max_length or keep.shape[-1]) / samples
    if aggregation == "combined":
        sample, group = token_weights(mask, "sample"), token_weights(mask, "group")
        return sample_fraction * sample + (1 - sample_fraction) * group
    near = difflib.get_close_matches(aggregation, AGGREGATIONS, 1, cutoff=0)[0]
    raise ValueError(
        f"unknown aggregation {aggregation!r}; did you mean {near!r}? One of {AGGREGATIONS}"
    )


def _at_least_1(count: jax.Array) -> jax.Array:
    return jnp.maximum(count, 1)
