"""What the command line says becomes a command; what a command raises becomes a sentence and an exit code."""

import errno
import re
import sys
from itertools import pairwise

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

# What libraries say of a value, in our words.
WORDS = {
    "Value error, ": "",
    "Input should be a valid integer.*": "has to be a whole number",
    "Input should be a valid number.*": "has to be a number",
    "Input should be ": "has to be ",
}


def run_command() -> int:
    """Run what the command line says. Returns the exit code."""
    # typer may bring a click of its own, so its exceptions are taken from typer
    usage_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        _refuse_empty(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == 130:  # how some versions of typer answer Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except usage_error as error:
        for foreign, ours in WORDS.items():
            error.message = re.sub(foreign, ours, error.message)
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


def _refuse_empty(words: list[str]) -> None:
    """Raises SubloraError for an empty word, which a shell makes of a variable that is not set; as a path it would be this folder."""
    for before, word in pairwise(["", *words]):
        if not word.strip() or (word.startswith("--") and word.endswith("=")):
            which = word.strip("= ") or (before if before.startswith("-") else "")
            what = f"The value of {which}" if which else "An argument"
            raise SubloraError(f"{what} is empty; give one, or leave it out.")


def _failed(sentence: str) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return 2
