"""Continuous batching by few programs, for a server that compiles all of them before it starts."""

from collections.abc import Sequence
from typing import Any

from mmrl.rollout.continuous import READ_ROWS, ContinuousBatch, Request
from mmrl.rollout.rows import RowSettings


class FixedSizes(ContinuousBatch):
    """A batch whose requests never wait for a compilation that another's size asks for.

    `pieces` are the (rows, tokens) that one program reads together, the narrow and then the few
    first. `support` and `best` are the ids that top-k and top-p may leave and that may be listed: a
    program has room for so many or for none, and another one is compiled only for more.
    """

    def __init__(
        self,
        *arguments: Any,
        pieces: Sequence[tuple[int, int]],
        support: int,
        best: int,
        **settings: Any,
    ):
        super().__init__(*arguments, **settings)
        self._pieces, self._support, self._best = pieces, support, best

    def _reading(self, rows: int = READ_ROWS) -> list[tuple[Request, list[int]]]:
        """A piece of the request that came first, and those of others that fit beside it."""
        unread = [request for request in self._running if request.reads]
        if not unread:
            return []
        first = unread[0]
        _, width = self._size(1, first.unread)
        fits = [first, *(r for r in unread[1:] if r.unread <= width)]
        most, _ = self._size(len(fits), min(first.unread, width))
        return [
            (r, r.session.tokens[r.session.read : r.session.read + min(r.unread, width)])
            for r in fits[: min(most, rows)]
        ]

    def _size(self, rows: int, tokens: int) -> tuple[int, int]:
        """The narrowest that holds the tokens, else the widest; with the fewest rows, else most."""
        widest = self._pieces[-1][1]
        width = next((w for _, w in self._pieces if w >= tokens), widest)
        sizes = [(n, w) for n, w in self._pieces if w == width]
        return next((size for size in sizes if size[0] >= rows), sizes[-1])

    def _settings(self, support: int, best: int) -> RowSettings:
        """Rows that list the best are decoded by the program that truncates too."""
        support = max(support, self._support) if support or best else 0
        return super()._settings(support, max(best, self._best) if best else 0)
