"""A response while it comes: stop sequences, and thoughts, words and calls apart from one another.

What a client gets piece by piece and what it gets at once are the same: both are read here.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mmrl.text import ToolCall, parse_response
from mmrl.text.tool_calls import Family, Tools

# What begins a call, and what ends one or several.
_MARKS: dict[Family, tuple[str, str]] = {
    "chatml": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>", "}"),
    "m1": ("<tool_calls>", "</tool_calls>"),
    "m2": ("<minimax:tool_call>", "</minimax:tool_call>"),
}


class Read(NamedTuple):
    """What has become certain of a response; `malformed` counts calls that nobody can read."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    malformed: int = 0


def held_back(text: str, marks: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of one of the marks."""
    longest = max(map(len, marks), default=1) - 1
    for start in range(max(0, len(text) - longest), len(text)):
        if any(mark.startswith(text[start:]) for mark in marks):
            return len(text) - start
    return 0


class StopFinder:
    """Passes text on up to the first of the stop sequences, which `found` then names."""

    def __init__(self, stop: Sequence[str]):
        self._stop, self._held = tuple(stop), ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that no stop sequence can reach back to."""
        if self.found or not self._stop:
            return "" if self.found else text
        self._held += text
        # The one that is complete first; of two that end together the longer.
        ends = [(i + len(s), -len(s), s) for s in self._stop if (i := self._held.find(s)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            return self._take(end - len(self.found))
        return self._take(len(self._held) - held_back(self._held, self._stop))

    def finish(self) -> str:
        """What is left when no more text comes."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


class ResponseReader:
    """Text in parts: `push` gives what is certain so far, `finish` the rest.

    `thinking` says that the prompt ended with an open <think>; without, a response may open one at
    its beginning. With a `family` calls are read, and words come once they cannot be one. What
    follows the first call comes at the end. Calls that nobody can read are words if there is no
    other. `given` is the beginning of the response that stood in the prompt, a call's.
    """

    def __init__(
        self,
        family: Family | None,
        tools: Tools | None = None,
        *,
        thinking: bool = False,
        given: str = "",
    ):
        self._family, self._tools = family, tools
        self._opening, self._closing = _MARKS[family] if family else ("", "")
        self._state = "thoughts" if thinking else "begin"
        self._begun = False  # something other than newlines of this part was passed on
        self._text = given
        self._calls = self._closed = 0

    def push(self, text: str) -> Read:
        self._text += text
        reasoning = self._thoughts()
        content = self._words() if self._state == "words" else ""
        calls: tuple[ToolCall, ...] = ()
        if (
            self._family
            and self._state == "calls"
            and self._text.count(self._closing) > self._closed
        ):
            self._closed = self._text.count(self._closing)
            found = parse_response(self._text, self._family, self._tools, thinking=False).calls
            calls, self._calls = found[self._calls :], len(found)
        return Read(reasoning, content, calls)

    def finish(self) -> Read:
        reasoning = ""
        if self._state == "begin":
            self._state = "words"
        if self._state == "thoughts":  # never closed: they end at the first call
            at = self._text.find(self._opening) if self._family else -1
            at = at if at >= 0 else len(self._text)
            reasoning, self._text = self._strip(self._text[:at], last=True), self._text[at:]
            self._begun, self._state = False, "words"
        content = self._words() if self._state == "words" else ""
        if not self._family or self._state != "calls":
            return Read(reasoning, content + self._strip(self._text, last=True))
        parsed = parse_response(self._text, self._family, self._tools, thinking=False)
        calls = parsed.calls[self._calls :]
        rest = parsed.content if parsed.calls or not parsed.errors else self._text
        apart = "\n" if self._begun and rest else ""
        rest = apart + self._strip(rest, last=True)
        return Read(reasoning, content + rest, calls, len(parsed.errors))

    def _thoughts(self) -> str:
        """Thoughts that are certain; goes on to "words" where they end."""
        if self._state == "begin":
            body = self._text.lstrip()
            if body.startswith("<think>"):
                self._text, self._state = body.removeprefix("<think>"), "thoughts"
            elif body and not "<think>".startswith(body):
                self._state = "words"
        if self._state != "thoughts":
            return ""
        before, closed, after = self._text.partition("</think>")
        if closed:
            reasoning = self._strip(before, last=True)
            self._text, self._begun, self._state = after, False, "words"
            return reasoning
        # A call among thoughts is one only if they are never closed.
        marks = ["</think>", *filter(None, [self._opening])]
        at = self._text.find(self._opening) if self._family else -1
        end = at if at >= 0 else len(self._text) - held_back(self._text, marks)
        return self._pass(end)

    def _words(self) -> str:
        """Words that are certain; goes on to "calls" where one begins."""
        if not self._family:
            return self._pass(len(self._text))
        at = self._text.find(self._opening)
        bare = self._family == "llama3" and not self._begun  # its calls may have no mark
        if bare and re.match(r"[\s;,]*(\{|$)", self._text):
            if "{" in self._text:
                self._state = "calls"
            return ""
        if at >= 0:
            words = self._pass(at)
            # Newlines before a call are nobody's.
            self._text = self._text[self._text.find(self._opening) :]
            self._state = "calls"
            return words
        return self._pass(len(self._text) - held_back(self._text, [self._opening]))

    def _pass(self, end: int) -> str:
        """Takes the text up to `end`, without newlines that may turn out to stand at an end."""
        text = self._strip(self._text[:end])
        kept = len(self._text[:end]) - len(self._text[:end].rstrip("\n"))
        self._text = self._text[end - kept :]
        return text

    def _strip(self, text: str, last: bool = False) -> str:
        """`text` without newlines at its beginning, if nothing came before, and at its end."""
        text = text.rstrip("\n") if text or last else text
        text = text if self._begun else text.lstrip("\n")
        self._begun = self._begun or bool(text)
        return text
