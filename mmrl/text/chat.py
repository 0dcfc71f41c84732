"""Chat messages to the text of a prompt, by Jinja templates as Hugging Face checkpoints carry them.

A message is {"role": …, "content": text or a list of {"type": "text", "text": …}}; an assistant's
may have `reasoning_content` and `tool_calls`, [{"function": {"name": …, "arguments": {…}}}].
"""

import datetime
import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mmrl.errors import UserError, nearest

Message = Mapping[str, Any]
BUILTIN_TEMPLATES = ("chatml", "llama3", "m1", "m2")
_PROBE = "mmrl-probe"


@dataclass(frozen=True)
class ChatTemplate:
    """A template of a checkpoint or a built-in one.

    name       where it comes from, for error messages
    source     its Jinja text
    tool_source  another text that is used instead when there are tools ("tool_use" of checkpoints)
    variables  what it may name besides the arguments of `render`: bos_token, eos_token, …
    """

    name: str
    source: str
    tool_source: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt, up to where the assistant's next turn begins if `add_generation_prompt`.

        Content goes to a template that wants lists of parts (MiniMax-M1's) as such a list, and
        arguments of tool calls that are JSON text, as OpenAI's are, become objects. Raises
        `UserError` with the template's name for what the template refuses.
        """
        bad = [
            m for m in messages if not (isinstance(m, Mapping) and isinstance(m.get("role"), str))
        ]
        if bad:
            raise UserError(f"a chat message is an object with a 'role', got {bad[0]!r}")
        chat = [_with_objects(message) for message in messages]
        if self._wants_parts:
            chat = [_with_parts(message) for message in chat]
        try:
            return self._render(chat, tools, add_generation_prompt, variables)
        except Exception as error:  # the template is a program that may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"chat template {self.name} refuses the messages ({roles}): {_text(error)}"
            ) from error

    @functools.cached_property
    def turn_end(self) -> str:
        """What it writes after an assistant's content, "" if it refuses plain messages."""
        chat = [{"role": "user", "content": "."}, {"role": "assistant", "content": _PROBE}]
        try:
            return self.render(chat, add_generation_prompt=False).rpartition(_PROBE)[2]
        except UserError:
            return ""

    @functools.cached_property
    def _wants_parts(self) -> bool:
        """Whether the template shows a user's content only if it is a list of parts."""
        message = {"role": "user", "content": _PROBE}
        return not self._shows(message) and self._shows(_with_parts(message))

    def _shows(self, message: Message) -> bool:
        try:
            return _PROBE in self._render([message], None, True, {})
        except Exception:  # refused, for whatever reason: then it does not show it
            return False

    def _render(
        self, messages: Sequence[Message], tools: Any, generation: bool, variables: Mapping
    ) -> str:
        source = self.tool_source if tools and self.tool_source else self.source
        return _compile(source).render(
            **{**self.variables, **variables},
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=generation,
        )


def builtin_template(name: str, variables: Mapping[str, Any] | None = None) -> ChatTemplate:
    """One of `BUILTIN_TEMPLATES`. Raises `UserError` for another name."""
    if name not in BUILTIN_TEMPLATES:
        raise UserError(
            f"no built-in chat template {name!r}.{nearest(name, BUILTIN_TEMPLATES)} "
            f"There are {', '.join(BUILTIN_TEMPLATES)}"
        )
    file = importlib.resources.files("mmrl.text") / "templates" / f"{name}.jinja"
    return ChatTemplate(name, file.read_text(encoding="utf-8"), variables=variables or {})


def _with_objects(message: Message) -> dict[str, Any]:
    """`message` with the arguments of its tool calls as objects where they are JSON text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [_call_with_object(call) for call in calls]}


def _call_with_object(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call_with_object(call["function"])}
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def _with_parts(message: Message) -> dict[str, Any]:
    """`message` with its text as a list of one part, which names the tool if it is a result."""
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    name = {"name": message["name"]} if "name" in message else {}
    return {**message, "content": [{"type": "text", "text": content} | name]}


def _text(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    place = f" (line {line} of the template)" if line else ""
    return f"{error or type(error).__name__}{place}"


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> Any:
    return _environment().from_string(source)


@functools.cache
def _environment() -> Any:
    """Jinja as `transformers.utils.chat_template_utils` sets it up."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise UserError("chat templates need jinja2: pip install 'mmrl[hf]'") from error

    class Generation(jinja2.ext.Extension):
        """{% generation %}…{% endgeneration %} is the assistant's words: rendered as they are."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
