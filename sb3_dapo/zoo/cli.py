"""The name that the command had: `sb3_dapo.cli` can be imported without the Zoo."""

from sb3_dapo.cli import COMMANDS, Command, build_parser, main

__all__ = ["COMMANDS", "Command", "build_parser", "main"]
