"""Text and tokens: tokenizers, chat templates, tool calls in responses, streaming."""

from mmrl.text.chat import ChatTemplate, builtin_template
from mmrl.text.pretrained import PretrainedTokenizer, load_tokenizer
from mmrl.text.streaming import StreamDecoder
from mmrl.text.tokenizer import CharTokenizer, Tokenizer
from mmrl.text.tool_calls import ParsedResponse, ToolCall, parse_response
from mmrl.text.turns import (
    encode_next_turn,
    encode_rendered,
    family_of,
    next_turn,
    tool_messages,
)

__all__ = [
    "CharTokenizer",
    "ChatTemplate",
    "ParsedResponse",
    "PretrainedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "ToolCall",
    "builtin_template",
    "encode_next_turn",
    "encode_rendered",
    "family_of",
    "load_tokenizer",
    "next_turn",
    "parse_response",
    "tool_messages",
]
