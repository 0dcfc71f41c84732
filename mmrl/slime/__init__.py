"""slime's command line for `mmrl.train`: one table of its flags, and what they make of a config."""

from mmrl.slime.command_line import Given, split_argv
from mmrl.slime.translate import Translation, arguments, configure, translate

__all__ = ["Given", "Translation", "arguments", "configure", "split_argv", "translate"]
