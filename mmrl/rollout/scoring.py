"""Log-probabilities of tokens that were given and not drawn, for whoever evaluates a served model.

    scorer = PromptScorer(model, context)
    scores = await scorer.score(tokens, best=5)

The same forward function as everywhere, without a cache. Prompts that wait are scored together.
"""

import asyncio
import collections
import contextlib
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl import sharding
from mmrl.compilation import model_jit
from mmrl.errors import UserError
from mmrl.models import Decoder
from mmrl.sharding import Layout

SMALLEST_WIDTH = 64
TOKENS_TOGETHER = 1024  # of one program, unless a single prompt has more
CHUNK = 256  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class PromptScores:
    """What the model says of T tokens: entry i is about what follows token i.

    logprobs   [T] of token i + 1, the last of `next_token`
    best       [T] the most probable ids with their log-probabilities, the most probable first
    next_token the most probable token after the last
    """

    logprobs: list[float]
    best: list[list[tuple[int, float]]]
    next_token: int


@functools.partial(model_jit, static_argnames=("graphdef", "best", "layout"))
def prompt_scores(
    graphdef, params, tokens: jax.Array, lengths: jax.Array, best: int, layout: Layout
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of tokens [B, T], `lengths` [B] of which count: log-probabilities of the next tokens [B, T],
    the `best` ids [B, T, N] and their log-probabilities.

    After the last token of a row that is the most probable one's. B and T are powers of two.
    """
    with sharding.layout(layout):
        model: Decoder = nnx.merge(graphdef, params)
        rows, width = tokens.shape
        step = min(max(CHUNK // rows, 1), width)
        segments = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
        hidden, _, _ = model.hidden_states(tokens, segment_ids=segments)
        # -1 stands for the most probable one.
        follows = jnp.arange(1, width + 1) < lengths[:, None]
        targets = jnp.where(follows, jnp.roll(tokens, -1, axis=1), -1)

        def chunk(part):
            hidden, targets = part
            logprobs = jax.nn.log_softmax(model.logits(hidden))
            values, ids = jax.lax.top_k(logprobs, best)
            chosen = jnp.where(targets < 0, ids[..., 0], targets)
            return jnp.take_along_axis(logprobs, chosen[..., None], axis=-1)[..., 0], ids, values

        def split(x):
            return jnp.moveaxis(x.reshape(rows, width // step, step, *x.shape[2:]), 1, 0)

        def join(x):
            return jnp.moveaxis(x, 0, 1).reshape(rows, width, *x.shape[3:])

        return jax.tree.map(join, jax.lax.map(chunk, (split(hidden), split(targets))))


class PromptScorer:
    """Scores prompts of at most `context` tokens, those that wait and are of like length together.

    Widths are 64, 256, 1024, …, each compiled when it is first needed, for one row and for several.
    """

    def __init__(self, model: Decoder, context: int, *, layout: Layout = "train"):
        self.context, self._layout = context, layout
        self._graphdef, self._params = nnx.split(model)
        self._mesh = jax.sharding.get_mesh()
        self._vocabulary = model.config.vocab_size
        self._waiting: collections.deque[tuple[list[int], int, asyncio.Future]] = (
            collections.deque()
        )
        self._thread = ThreadPoolExecutor(1, "score")
        self._driver: asyncio.Task | None = None

    async def score(self, tokens: Sequence[int], best: int = 1) -> PromptScores:
        """Raises `UserError` for a sequence without tokens or with more than the context holds."""
        if not 0 < len(tokens) <= self.context:
            raise UserError(
                f"the sequence has {len(tokens)} tokens and needs 1 to {self.context}: the context "
                f"holds {self.context}"
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[PromptScores] = loop.create_future()
        self._waiting.append((list(tokens), min(best, self._vocabulary), done))
        if self._driver is None or self._driver.done():
            self._driver = loop.create_task(self._drive())
        return await done

    async def _drive(self) -> None:
        """Scores until nobody waits; what fails reaches those who were scored together."""
        while together := self._next():
            results: Sequence[PromptScores | Exception]
            try:
                work = functools.partial(self._score, [(x, n) for x, n, _ in together])
                results = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except Exception as error:
                results = [error] * len(together)
            for (*_, done), result in zip(together, results, strict=True):
                if done.done():
                    continue
                if isinstance(result, Exception):
                    done.set_exception(result)
                else:
                    done.set_result(result)

    def _next(self) -> list[tuple[list[int], int, asyncio.Future]]:
        """Takes the first that waits and others of its width."""
        waiting = [entry for entry in self._waiting if not entry[2].done()]
        if not waiting:
            self._waiting.clear()
            return []
        width = _width(len(waiting[0][0]))
        alike = [entry for entry in waiting if _width(len(entry[0])) == width]
        together = alike[: _rows(width)]
        self._waiting = collections.deque(e for e in waiting if e not in together)
        return together

    def _score(self, prompts: list[tuple[list[int], int]]) -> list[PromptScores]:
        width = _width(max(len(tokens) for tokens, _ in prompts))
        rows = 1 if len(prompts) == 1 else _rows(width)
        best = max(1, *(best for _, best in prompts))
        best = min(1 << (best - 1).bit_length(), self._vocabulary)  # few sizes, each compiled once
        tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        for row, (prompt, _) in enumerate(prompts):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        with jax.set_mesh(self._mesh) if self._mesh.size else contextlib.nullcontext():
            arrays = prompt_scores(
                self._graphdef, self._params, tokens, lengths, best, self._layout
            )
        logprobs, ids, values = jax.device_get(arrays)
        return [
            PromptScores(
                logprobs[row, :n].tolist(),
                [
                    list(zip(*pair, strict=True))
                    for pair in zip(
                        ids[row, :n, :asked].tolist(), values[row, :n, :asked].tolist(), strict=True
                    )
                ],
                int(ids[row, n - 1, 0]),
            )
            for row, (n, asked) in enumerate((len(prompt), asked) for prompt, asked in prompts)
        ]


def _width(tokens: int) -> int:
    """64, 256, 1024, …: the smallest that holds so many."""
    width = SMALLEST_WIDTH
    while width < tokens:
        width *= 4
    return width


def _rows(width: int) -> int:
    """Rows of this width that are scored together."""
    return max(1, TOKENS_TOGETHER // width)
