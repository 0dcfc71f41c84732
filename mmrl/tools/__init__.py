"""What a model may call: typed functions as tools, a few that are built in, and MCP servers'."""

from mmrl.tools.arithmetic import calculator
from mmrl.tools.corpus import search
from mmrl.tools.programs import python, submit
from mmrl.tools.schema import ArgumentError
from mmrl.tools.tool import Submission, Tool, ToolError, ToolResult, call, call_all, counts, tool

__all__ = [
    "ArgumentError",
    "Submission",
    "Tool",
    "ToolError",
    "ToolResult",
    "calculator",
    "call",
    "call_all",
    "counts",
    "python",
    "search",
    "submit",
    "tool",
]
