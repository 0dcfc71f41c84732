"""The record that travels from sampler to reward, loss, disk and report."""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """P prompts with G sampled responses each; S prompt tokens, T response tokens, right-padded.

    prompt_tokens        [P, S] int32
    prompt_lengths       [P] int32, at least 1
    tokens               [P, G, T] int32
    lengths              [P, G] int32, tokens of each response
    mask                 [P, G, T] float32, 1 where a sampled token counts in the loss
    behaviour_logprobs   [P, G, T] float32, of the distribution that the token was drawn from
    support              [P, G, T, K] int32, the ids that top-k and top-p left, -1 padded; or None
    status               [P, G] int32, a `mmrl.data.records.Status`
    reward, advantages   [P, G] float32
    temperatures         [P] float32, where prompts have one of their own; or None
    staleness            [P, G, T] int32, RL steps since the weights that drew the token; None is 0
    metadata             P host objects (the examples), never traced: `arrays()` drops them
    """

    prompt_tokens: jax.Array
    prompt_lengths: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    mask: jax.Array
    behaviour_logprobs: jax.Array
    support: jax.Array | None
    status: jax.Array
    reward: jax.Array
    advantages: jax.Array
    temperatures: jax.Array | None = None
    staleness: jax.Array | None = None
    metadata: tuple[Any, ...] = field(default=(), metadata=dict(static=True))

    def replace(self, **changes) -> "Rollout":
        return dataclasses.replace(self, **changes)

    def arrays(self) -> "Rollout":
        """The record without its host objects, as a compiled function takes it."""
        return self.replace(metadata=())

    def split(self, parts: int) -> list["Rollout"]:
        """Equal parts of consecutive prompts, for several optimizer steps on one rollout.

        Without metadata. One program, for a part may lie on other devices than in the whole.
        """
        return _split(self.arrays(), parts)


@functools.partial(jax.jit, static_argnames="parts")
def _split(rollout: Rollout, parts: int) -> list[Rollout]:
    size = rollout.tokens.shape[0] // parts
    slices = [slice(i * size, (i + 1) * size) for i in range(parts)]
    return [jax.tree.map(lambda x, s=s: x[s], rollout) for s in slices]
