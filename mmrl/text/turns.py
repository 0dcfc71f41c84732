"""What stands between two turns of a model: results of its calls, or what a user says next.

A growing conversation is never rendered again: templates leave out earlier reasoning and spell
calls their own way, so the ids would differ from those that were sampled. Only the text that comes
after the token that ended the model's turn is taken from the template, and appended.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmrl.errors import UserError
from mmrl.text.chat import ChatTemplate, Message
from mmrl.text.tokenizer import Tokenizer
from mmrl.text.tool_calls import Family

# What only a template of the family writes.
_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("<minimax:tool_call>", "m2"),
    ("<beginning_of_sentence>", "m1"),
    ("<|start_header_id|>", "llama3"),
    ("<|im_start|>", "chatml"),
)


def family_of(template: ChatTemplate) -> Family:
    """The family whose calls `parse_response` can read. Raises `UserError` for another template."""
    for mark, family in _FAMILIES:
        if mark in template.source:
            return family
    known = ", ".join(family for _, family in _FAMILIES)
    raise UserError(f"the tool calls of chat template {template.name} are none of {known}")


def tool_messages(results: Sequence[tuple[str, str]], family: Family) -> list[dict[str, Any]]:
    """Messages with the results of one turn's calls, (name of the tool, text) each.

    M1 has all of them in one message, as its function call guide says; the others have one each.
    """
    if family == "m1":
        parts = [{"type": "text", "name": name, "text": text} for name, text in results]
        return [{"role": "tool", "content": parts}] if parts else []
    return [
        {"role": "tool", "name": name, "content": text, "tool_call_id": _call_id(index)}
        for index, (name, text) in enumerate(results)
    ]


def next_turn(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    stopped: bool = True,
    **variables: Any,
) -> str:
    """The text after the model's turn, `messages` in it, up to where its next turn begins.

    `stopped` says that the model has written the token that ends its turn; otherwise that comes
    first. Raises `UserError` for messages that the template refuses, and for a template that
    writes them differently after one history and another, or does not mark the end of a turn.
    """
    end = template.turn_end.strip()
    if not end:
        raise UserError(f"chat template {template.name} does not mark the end of a turn")
    spoken = _spoken(messages)
    probe = next(word for word in _words("mmrlturn") if word not in spoken)
    answer = _answer(messages, probe)
    found = set()
    for history in _HISTORIES:
        rendered = template.render([*history, answer, *messages], tools, True, **variables)
        _, shown, rest = rendered.rpartition(probe)
        _, ended, suffix = rest.partition(end)
        if not shown or not ended:
            raise UserError(f"chat template {template.name} does not show an assistant's turn")
        found.add(suffix)
    if len(found) > 1:
        raise UserError(
            f"chat template {template.name} writes a turn differently after other histories, so "
            "it cannot be appended"
        )
    return found.pop() if stopped else end + found.pop()


def encode_next_turn(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    last_id: int | None = None,
    **variables: Any,
) -> list[int]:
    """The ids of `next_turn` after a response whose last id is `last_id`.

    The text of special tokens in the messages is text: no result of a tool ends a turn or begins
    another. Raises `UserError` as `next_turn` and for a tokenizer without a chat template.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UserError("a conversation needs a tokenizer with a chat template")
    return encode_rendered(
        tokenizer,
        messages,
        lambda messages: next_turn(
            template, messages, tools, stopped=last_id in tokenizer.stop_ids, **variables
        ),
    )


def encode_rendered(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    render: Callable[[Sequence[Message]], str],
) -> list[int]:
    """The ids of what `render` makes of the messages, where the text of special tokens is text.

    Those that the template itself writes are special.
    """
    specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
    spoken = _spoken(messages)
    words = (word for word in _words("mmrlspecial") if word not in spoken)
    hidden = dict(zip((token for token in specials if token in spoken), words))
    text = render([_without(message, hidden) for message in messages])
    shown = {word: token for token, word in hidden.items()}
    pieces = re.split(f"({'|'.join(shown)})", text) if shown else [text]
    return [
        index
        for piece in pieces
        for index in tokenizer.encode(shown.get(piece, piece), special=piece not in shown)
    ]


_ASKED = {"role": "user", "content": "a"}
_HISTORIES: tuple[list[Message], ...] = (
    [_ASKED],
    [_ASKED, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
)


def _answer(messages: Sequence[Message], probe: str) -> dict[str, Any]:
    """A turn of the model that ends in `probe`: a call if results of tools come next."""
    answer: dict[str, Any] = {"role": "assistant", "content": probe}
    if messages and messages[0].get("role") == "tool":
        function = {"name": "f", "arguments": {"x": probe}}
        answer["tool_calls"] = [{"id": _call_id(0), "type": "function", "function": function}]
    return answer


def _spoken(value: Any) -> str:
    """All text in messages."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return "\n".join(map(_spoken, value)) if isinstance(value, list | tuple) else str(value)


def _without(value: Any, hidden: Mapping[str, str]) -> Any:
    """A message with words in place of the text of special tokens."""
    if isinstance(value, str):
        for token, word in hidden.items():
            value = value.replace(token, word)
        return value
    if isinstance(value, Mapping):
        return {
            key: item if key == "role" else _without(item, hidden) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without(item, hidden) for item in value]
    return value


def _call_id(index: int) -> str:
    return f"call{index:05d}"  # nine letters and digits, which Mistral's templates insist on


def _words(stem: str) -> Iterator[str]:
    """Words that a template leaves as they are, however it escapes or strips."""
    return (f"{stem}{index}q" for index in itertools.count())
