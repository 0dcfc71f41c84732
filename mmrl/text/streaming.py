"""Text of a response while its ids arrive one by one."""

from mmrl.text.tokenizer import Tokenizer

# UTF-8 finds a character's start again within 4 bytes, and a token has at least one byte: what is
# at the end of the decoded text of the last 8 ids is the same whatever came before them.
_WINDOW = 8
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder:
    """Feeds ids to `push`, which returns the text that they complete; never half a character.

    All that `push` and the last `finish` return is `tokenizer.decode` of all ids. What a byte-level
    tokenizer cannot complete is U+FFFD, as in `decode`, and comes with what follows it. The cost of
    an id does not grow with the number before it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._skipped = {tokenizer.pad_id, *tokenizer.stop_ids}
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text that were returned

    def push(self, token: int) -> str:
        """Text that `token` completes, "" for padding and stop ids."""
        if int(token) in self._skipped:
            return ""
        self._window.append(int(token))
        text = self._tokenizer.decode(self._window)
        complete = len(text.removesuffix(_INCOMPLETE))
        new = text[self._shown : complete]
        self._shown = max(self._shown, complete)
        if len(self._window) > 2 * _WINDOW:
            hidden = len(text) - self._shown
            self._window = self._window[-_WINDOW:]
            self._shown = len(self._tokenizer.decode(self._window)) - hidden
        return new

    def finish(self) -> str:
        """The rest, when no more ids come."""
        rest = self._tokenizer.decode(self._window)[self._shown :]
        self._window, self._shown = [], 0
        return rest
