"""The command line: words to calls."""

from sublora.cli.app import main

__all__ = ["main"]
