"""Text to token ids and back: what mmrl asks of a tokenizer, and one of single characters."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mmrl.errors import UserError
from mmrl.text.chat import ChatTemplate

PRINTABLE_ASCII = "\n" + "".join(map(chr, range(32, 127)))


class Tokenizer(Protocol):
    """What the rest of mmrl asks of a tokenizer.

    `encode` adds no special ids. With `special` the text of a special token becomes its id, as chat
    prompts need; without, it is text like any other. `decode` leaves out padding and stop ids and
    accepts any int. `turn_end_id` ends a turn of the chat template, or is `eos_id` without one;
    `special_tokens` are the texts of all special ids that text can spell.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def turn_end_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def special_tokens(self) -> tuple[str, ...]: ...
    @property
    def chat_template(self) -> ChatTemplate | None: ...
    def encode(self, text: str, *, special: bool = False) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class CharTokenizer:
    """One id a character: padding 0, end 1, unknown 2, then the alphabet in its order.

    `phrases` are texts with an id of their own after the alphabet's, such as the instruction that
    all prompts of a task begin with; where several fit the longest wins, the leftmost first. A
    character outside the alphabet is a `UserError`, or id 2 with `unknown="replace"`. Ids that
    stand for no character decode to U+FFFD, so that a model with a larger vocabulary cannot fail.
    """

    alphabet: str = PRINTABLE_ASCII
    phrases: tuple[str, ...] = ()
    unknown: Literal["error", "replace"] = "error"

    pad_id = 0
    eos_id = 1
    unknown_id = 2
    stop_ids = (eos_id,)
    turn_end_id = eos_id
    special_tokens = ()
    chat_template = None

    def __post_init__(self):
        repeated = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
        if not self.alphabet or repeated:
            raise UserError(f"the alphabet must hold each character once; repeated: {repeated}")
        if len(set(self.phrases)) < len(self.phrases) or any(len(p) < 2 for p in self.phrases):
            raise UserError(f"phrases must differ and have two characters or more: {self.phrases}")
        if self.unknown not in ("error", "replace"):
            raise UserError(f"unknown must be 'error' or 'replace', got {self.unknown!r}")

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet) + len(self.phrases) + 3

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate((*self.alphabet, *self.phrases), 3)}

    @functools.cached_property
    def _pieces(self) -> dict[int, str]:
        return {index: piece for piece, index in self._ids.items()}

    @functools.cached_property
    def _split(self) -> re.Pattern[str]:
        longest_first = sorted(self.phrases, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of the phrases and characters of `text`. Raises `UserError` as `unknown` says.

        No text spells the special ids, whatever `special` is.
        """
        pieces = self._split.findall(text)
        if self.unknown == "replace":
            return [self._ids.get(piece, self.unknown_id) for piece in pieces]
        try:
            return [self._ids[piece] for piece in pieces]
        except KeyError as error:
            character = error.args[0]
            at = text.index(character)
            raise UserError(
                f"character {character!r} at position {at} of {text[max(0, at - 20) : at + 20]!r} "
                "is not in the tokenizer's alphabet: add it, or set unknown='replace'"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without padding and end ids."""
        return "".join(
            self._pieces.get(index, "\N{REPLACEMENT CHARACTER}")
            for index in map(int, ids)
            if index not in (self.pad_id, self.eos_id)
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a JSON file that `load_tokenizer` reads."""
        content = {"type": "char"} | dataclasses.asdict(self)
        Path(path).write_text(json.dumps(content) + "\n")
