"""What the command line says becomes a command; what a command raises becomes a sentence and an exit code."""

import errno
import sys

import typer

from sublora.cli.app import app
from sublora.cli.interrupts import say
from sublora.errors import SubloraError

# What is wrong with a path, or with the disk behind it, and how that is fixed.
FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "make it writable",
    errno.EROFS: "make it writable",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


def run_command() -> int:
    """Run what the command line says. Returns the exit code."""
    # typer may bring a click of its own, so its exceptions are taken from typer
    usage_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = app(standalone_mode=False)
        if code == 130:  # how some versions of typer answer Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except usage_error as error:
        error.show()
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return say()
    except SubloraError as error:
        return _failed(f"{error}")
    except OSError as error:
        if error.errno not in FIXES:
            raise
        where, fix = f" at {error.filename}" if error.filename else "", FIXES[error.errno]
        return _failed(
            f"{error.strerror}{where}; {fix} and run the same command again, what was finished is kept."
        )


def _failed(sentence: str) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return 2
