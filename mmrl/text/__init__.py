"""Text and tokens: tokenizers, chat templates, tool calls in responses, streaming."""

from mmrl.text.chat import ChatTemplate, builtin_template
from mmrl.text.pretrained import PretrainedTokenizer, load_tokenizer
from mmrl.text.streaming import StreamDecoder
from mmrl.text.tokenizer import CharTokenizer, Tokenizer
from mmrl.text.tool_calls import ParsedResponse, ToolCall, parse_response

__all__ = [
    "CharTokenizer",
    "ChatTemplate",
    "ParsedResponse",
    "PretrainedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "ToolCall",
    "builtin_template",
    "load_tokenizer",
    "parse_response",
]
