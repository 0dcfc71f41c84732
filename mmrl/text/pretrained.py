"""Tokenizers of published checkpoints, by the `tokenizers` library."""

import functools
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.errors import UserError
from mmrl.text.chat import BUILTIN_TEMPLATES, ChatTemplate, builtin_template
from mmrl.text.checkpoint_files import TokenizerFiles, read_gguf, read_hf, write_hf
from mmrl.text.tokenizer import CharTokenizer, Tokenizer

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a checkpoint, read when it is first used.

    path      a Hugging Face directory, a tokenizer.json (the other files are looked for beside it),
              or a GGUF file
    template  the chat template instead of the checkpoint's own: "chatml", "llama3", "m1" or "m2",
              or the path of a .jinja file

    Padding is the checkpoint's padding token, or else its end token. Stop ids are the end token,
    all of generation_config.json and what ends a turn of the chat template. Ids without a token, as
    models with a padded vocabulary draw them, decode to U+FFFD. Raises `UserError` with the path
    for what is missing, broken or not supported.
    """

    path: str
    template: str | None = None

    def __reduce__(self):
        # A copied or unpickled `_plain` would recognise special tokens.
        return type(self), (self.path, self.template)

    @functools.cached_property
    def _files(self) -> TokenizerFiles:
        try:
            import tokenizers  # noqa: F401
        except ImportError as error:
            raise UserError(f"{self.path} needs tokenizers: pip install 'mmrl[hf]'") from error
        path = Path(self.path)
        return read_gguf(path) if path.suffix == ".gguf" else read_hf(path)

    @functools.cached_property
    def _plain(self) -> "tokenizers.Tokenizer":
        """A second one that takes the text of special tokens as text like any other."""
        backend = self._files.backend
        plain = type(backend).from_str(backend.to_str())
        plain.encode_special_tokens = True
        return plain

    @functools.cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self._files.backend.get_vocab().values())

    @functools.cached_property
    def vocab_size(self) -> int:
        """The highest id + 1, added tokens included."""
        return max(self._ids) + 1

    @functools.cached_property
    def eos_id(self) -> int:
        declared = self._special_id("eos_token")
        if declared is not None:
            return declared
        if self._files.stop_ids:
            return self._files.stop_ids[0]
        raise UserError(
            f"{self.path} does not say which token ends a text: expected eos_token in "
            "tokenizer_config.json or eos_token_id in generation_config.json beside it"
        )

    @functools.cached_property
    def pad_id(self) -> int:
        declared = self._special_id("pad_token")
        return self.eos_id if declared is None else declared

    @functools.cached_property
    def turn_end_id(self) -> int:
        """The added token that the chat template writes after an assistant's content."""
        if self.chat_template is None:
            return self.eos_id
        added = self._files.backend.get_added_tokens_decoder()
        after = self.encode(self.chat_template.turn_end, special=True)
        return next((index for index in after if index in added), self.eos_id)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.eos_id, *self._files.stop_ids, self.turn_end_id)))

    @functools.cached_property
    def special_tokens(self) -> tuple[str, ...]:
        added = self._files.backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        tokens = self._files.tokens
        if self.template is None:
            texts = self._files.templates
            if "default" not in texts:
                return None
            return ChatTemplate(
                f"of {self.path}", texts["default"], texts.get("tool_use"), variables=tokens
            )
        if not self.template.endswith(".jinja"):
            return builtin_template(self.template, tokens)
        try:
            text = Path(self.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"chat template {self.template} cannot be read ({error}): expected a .jinja file "
                f"or one of {', '.join(BUILTIN_TEMPLATES)}"
            ) from error
        return ChatTemplate(self.template, text, variables=tokens)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text` and nothing else; `special` makes ids of the text of special tokens."""
        backend = self._files.backend if special else self._plain
        return backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without padding and stop ids."""
        left_out = {self.pad_id, *self.stop_ids}
        kept = [index for index in map(int, ids) if index not in left_out]
        backend = self._files.backend
        return "".join(
            backend.decode(list(run), skip_special_tokens=False)
            if known
            else _REPLACEMENT * len(list(run))
            for known, run in itertools.groupby(kept, self._ids.__contains__)
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes tokenizer.json to `path`, and beside it the other files of `save_pretrained`."""
        replaced = self.chat_template if self.template is not None else None
        write_hf(self._files, Path(path), replaced, self.stop_ids)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes the files that `transformers.AutoTokenizer` reads.

        generation_config.json, which holds the stop ids, is written only where there is none.
        """
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.save(Path(directory) / "tokenizer.json")

    def _special_id(self, name: str) -> int | None:
        token = self._files.tokens.get(name)
        if token is None:
            return None
        index = self._files.backend.token_to_id(token)
        if index is None:
            raise UserError(f"{self.path}: its {name} {token!r} is not in its vocabulary")
        return index


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer that `save` wrote to `path`, or of a Hugging Face directory or GGUF file.

    Raises `UserError` naming the file.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    fields = None
    if file.suffix == ".json" and file.is_file():
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not a tokenizer file: {error}") from error
    if isinstance(fields, dict) and fields.get("type") == "char":
        try:
            del fields["type"]
            return CharTokenizer(**fields | {"phrases": tuple(fields.get("phrases", ()))})
        except (ValueError, TypeError) as error:
            raise UserError(f"{file} is not a tokenizer file: {error}") from error
    tokenizer = PretrainedTokenizer(str(path))
    _ = tokenizer.vocab_size  # reads the files, so that their errors come here
    return tokenizer
