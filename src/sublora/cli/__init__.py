"""The command line: words to calls."""

import atexit
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check found something, 2 wrong use or bad input, 3 interrupted.

    Batch systems and clouds send SIGTERM before they kill; from the first import on it ends a command as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        from sublora.cli.interrupts import end_fast, end_late

        end_late()
        end_fast()
        from sublora.cli.entry import run_command

        code = run_command()
    except KeyboardInterrupt:  # while the command line itself was imported
        code = 3
    if code == 3:  # at once: Python takes seconds to take the libraries down
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
