"""Answers a prompt, or chats in the terminal, with any model that mmrl loads.

    python -m mmrl.sample --checkpoint=runs/quickstart --prompt="Spell this word backward: sun"
    python -m mmrl.sample --checkpoint=SmolLM2-135M-Instruct.gguf --mode=pro

Without --prompt every line of the input is a turn. /reset forgets the conversation, /exit and
Ctrl-D end it, Ctrl-C stops an answer.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import jax
from absl import flags

from mmrl import config as configs
from mmrl import generation_flags as generation
from mmrl.errors import UserError
from mmrl.rollout.modes import MODES, Mode, mode_of, render_prompt
from mmrl.rollout.streaming import Conversation
from mmrl.text import StreamDecoder, Tokenizer

_PROMPT = flags.DEFINE_string("prompt", None, "Answer this and end; without it, chat.")
_MODE = flags.DEFINE_enum(
    "mode", "lightning", sorted(MODES), "lightning: short answers; pro: thinking and long ones."
)
_CONTEXT = flags.DEFINE_integer("context", None, "Tokens that the conversation may have.")
flags.adopt_module_key_flags(generation)


class Chat:
    """The turns of one conversation, as messages of a chat template or as one text without it."""

    def __init__(
        self,
        conversation: Conversation,
        tokenizer: Tokenizer,
        mode: Mode,
        *,
        system: str | None = None,
        raw: bool = False,
        seed: int = 0,
    ):
        self.conversation, self.mode, self._tokenizer = conversation, mode, tokenizer
        self._template = None if raw else tokenizer.chat_template
        self._system, self._key = system, jax.random.key(seed)
        self.reset()

    def reset(self) -> None:
        """Forgets all turns."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self._text, self._turns = "", 0
        self._tokens: list[int] = []

    def answer(self, prompt: str) -> Generator[str, None, None]:
        """Yields the text of the answer as it comes. Closing the iterator ends the answer there.

        `conversation.ending` says how it ended. Raises UserError where the prompt does not fit.
        """
        messages = [*self.messages, {"role": "user", "content": prompt}]
        text = self._render(messages)
        tokens = self._encode(text)
        key = jax.random.fold_in(self._key, self._turns)
        return self._stream(
            messages, text, tokens, self.conversation.respond(tokens, self.mode.sampling, key)
        )

    def _stream(self, messages, text, tokens, drawn: Iterator[int]) -> Generator[str, None, None]:
        response: list[int] = []
        decoder = StreamDecoder(self._tokenizer)
        try:
            for token in drawn:
                response.append(token)
                yield decoder.push(token)
            yield decoder.finish()
        finally:
            said = self._tokenizer.decode(response)
            self.messages = [*messages, {"role": "assistant", "content": said}]
            # The template itself writes what ends a turn.
            stopped = response and response[-1] in self.mode.sampling.stop_ids
            self._text = text + said
            self._tokens = tokens + (response[:-1] if stopped else response)
            self._turns += 1

    def _render(self, messages: list[dict]) -> str:
        if self._template is None:
            return self._text + self.mode.tag + messages[-1]["content"]
        return render_prompt(self._template, messages, self.mode)

    def _encode(self, text: str) -> list[int]:
        """Ids of the conversation, its earlier turns as they were read and drawn.

        Where the template shows earlier turns otherwise now (MiniMax-M2 drops old thoughts), all of
        it is encoded anew.
        """
        if self._text and text.startswith(self._text):
            rest = text[len(self._text) :]
            return [*self._tokens, *self._tokenizer.encode(rest, special=True)]
        return self._tokenizer.encode(text, special=True)


def say(chat: Chat, prompt: str) -> None:
    """Streams the answer to stdout; Ctrl-C ends it."""
    with _interrupts() as interrupted, contextlib.closing(chat.answer(prompt)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            if interrupted.is_set():
                break
    print(flush=True)
    limits = {
        "length": f"the answer reached its limit of {chat.mode.sampling.max_new_tokens} tokens",
        "context": f"the context of {chat.conversation.context} tokens is full",
        None: "the answer was stopped",
    }
    if chat.conversation.ending in limits:
        print(f"[{limits[chat.conversation.ending]}]", file=sys.stderr)


def converse(chat: Chat) -> None:
    """Reads turns from stdin until it ends."""
    print("Ctrl-C stops an answer, /reset starts anew, /exit or Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except EOFError:
            return
        if prompt == "/exit":
            return
        if prompt == "/reset":
            chat.reset()
        elif prompt:
            try:
                say(chat, prompt)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets while the block runs."""
    requested = threading.Event()
    earlier = signal.signal(signal.SIGINT, lambda number, frame: requested.set())
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, earlier)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --prompt={argv[1]!r}")
    mode = mode_of(Path(generation.CHECKPOINT.value), _MODE.value)
    sampling = generation.sampling_from(mode.sampling)
    mode = dataclasses.replace(mode, sampling=sampling, context=_CONTEXT.value or mode.context)
    with generation.loaded_model() as (model, tokenizer):
        if tokenizer.chat_template is None and not generation.RAW.value:
            print("[no chat template: the model continues the prompt as it is]", file=sys.stderr)
        sampling = dataclasses.replace(sampling, stop_ids=tokenizer.stop_ids)
        chat = Chat(
            Conversation(model, mode.context),
            tokenizer,
            dataclasses.replace(mode, sampling=sampling),
            system=generation.SYSTEM.value,
            raw=generation.RAW.value,
            seed=generation.SEED.value,
        )
        if _PROMPT.value is None:
            converse(chat)
        else:
            say(chat, _PROMPT.value)


if __name__ == "__main__":
    configs.run(main)
