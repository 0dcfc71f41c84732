"""Messages to the token ids that the model reads."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.errors import UserError
from mmrl.rollout.modes import Mode, render_prompt
from mmrl.serving.ask import Ask
from mmrl.serving.fields import unsupported, wrong
from mmrl.serving.limits import ApiError
from mmrl.text import ChatTemplate, Tokenizer, encode_rendered, family_of
from mmrl.text.tool_calls import Family

# No token has more characters on average; text beyond that is too long, and is not even encoded.
CHARACTERS_A_TOKEN = 32
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
# How a call begins, up to the tool's name and after it: what makes the model call one.
_BEGINNINGS: dict[Family, tuple[str, str]] = {
    "chatml": ('<tool_call>\n{"name": "', '", "arguments": '),
    "llama3": ('{"name": "', '", "parameters": '),
    "m1": ('<tool_calls>\n{"name": "', '", "arguments": '),
    "m2": ('<minimax:tool_call>\n<invoke name="', '">'),
}


@dataclass(frozen=True)
class Prompt:
    """`tokens` to read; whether they end with an open <think>; what they hold of the response."""

    tokens: list[int]
    thinking: bool = False
    given: str = ""
    family: Family | None = None


def chat_prompt(
    ask: Ask, mode: Mode, tokenizer: Tokenizer, template: ChatTemplate | None, most: int
) -> Prompt:
    """The prompt for the next turn. Raises `ApiError` 400 for what the template refuses.

    A text that cannot have as few as `most` tokens is refused without being encoded.
    Without a template it is the text of all messages, one after the other. The text of special
    tokens is text wherever a client spells it.
    """
    try:
        if template is None:
            if ask.tools:
                raise unsupported("tools", "the model has no chat template")
            words = "".join(_tagged(message, mode.tag) for message in ask.messages)
            check_characters(len(words), most)
            return Prompt(tokenizer.encode(words))
        family = family_of(template) if ask.tools else None
        given = _beginning(ask.call, family) if family and ask.call is not None else ""
        mode = dataclasses.replace(mode, thinking=ask.thinking and not given)
        messages = _joined_results(ask.messages) if _is_m1(template) else ask.messages
        rendered: list[str] = []

        def render(messages: Sequence[Mapping[str, Any]]) -> str:
            rendered.append(render_prompt(template, messages, mode, ask.tools) + given)
            check_characters(len(rendered[-1]), most)
            return rendered[-1]

        tokens = encode_rendered(tokenizer, messages, render)
        thinking = rendered[-1].rstrip().endswith("<think>")
        return Prompt(tokens, thinking, given, family)
    except UserError as error:
        raise ApiError(400, str(error), "messages") from error


def text_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text that is no chat; it may spell special tokens."""
    try:
        return tokenizer.encode(text, special=True)
    except UserError as error:
        raise ApiError(400, str(error), "prompt") from error


def check_characters(characters: int, prompt_tokens: int) -> None:
    """Raises `ApiError` for a text that has too many tokens whatever they are."""
    if characters > CHARACTERS_A_TOKEN * prompt_tokens:
        least = characters // CHARACTERS_A_TOKEN
        raise too_long(f"more than {least}", prompt_tokens)


def too_long(tokens: int | str, most: int) -> ApiError:
    """In Anthropic's words, which Claude Code knows."""
    message = f"prompt is too long: {tokens} tokens > {most} maximum"
    return ApiError(400, message, "messages", "context_length_exceeded")


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ApiError` for tools whose descriptions no template and no parser can read."""
    for i, tool in enumerate(tools):
        function, place = tool["function"], f"tools[{i}]"
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            raise wrong(f"{place}.name", "a name of letters, digits, _, . and -", name)
        if not isinstance(parameters, dict):
            raise wrong(f"{place}.parameters", "a JSON schema", parameters)
        properties = parameters.get("properties")
        if properties is not None and not isinstance(properties, dict):
            raise wrong(f"{place}.parameters.properties", "an object", properties)


def _beginning(name: str, family: Family) -> str:
    before, after = _BEGINNINGS[family]
    return f"{before}{name}{after}" if name else before


def _tagged(message: Mapping[str, Any], tag: str) -> str:
    return (tag if message["role"] == "user" else "") + message["content"]


@functools.cache
def _is_m1(template: ChatTemplate) -> bool:
    try:
        return family_of(template) == "m1"
    except UserError:
        return False


def _joined_results(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """MiniMax-M1 has the results of all calls of a turn in one message."""
    joined: list[Any] = []
    for message in messages:
        if message["role"] != "tool":
            joined.append(message)
            continue
        part = {"type": "text", "name": message.get("name", ""), "text": message["content"]}
        if joined and joined[-1]["role"] == "tool":
            joined[-1]["content"].append(part)
        else:
            joined.append({"role": "tool", "content": [part]})
    return joined
