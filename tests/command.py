"""Run the command line in this process, as `main` does, and keep what it printed."""

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest.mock import patch


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def sublora(*arguments: str) -> Answer:
    from sublora.cli.entry import run_command

    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["sublora", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run_command()
    return Answer(code, out.getvalue(), err.getvalue())


# The exit codes of an audit that ended: clean, found, and found in the data alone.
JUDGED = (0, 1, 4)

# A grid of a few seconds on a shipped model.
SMALL = [
    "--set",
    "data.rows=96",
    "--set",
    "data.heldout_rows=16",
    "--set",
    "data.seeds=[1,2]",
    "--set",
    "train.seeds=[1,2]",
    "--set",
    "measure.samples=3",
]
