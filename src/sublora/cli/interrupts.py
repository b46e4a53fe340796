"""Ctrl-C and SIGTERM end a command within two seconds with exit code 3, whatever it does, and say what is true of it."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

GRACE = 0.8  # seconds in which a command may end by itself
_sentences = ["Interrupted; run the same command again."]  # the last one is true
_said = threading.Event()


def end_fast() -> None:
    """Large tensors take pages of 2 MiB from now on, where Linux has them, and torch is yet to be imported. The system takes seconds to take
    gigabytes of small pages back from a process that ended, and the command has not ended before."""
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def end_late() -> None:
    """From now on a command that does not come to answer a signal within GRACE, as in the middle of a step of a large model, ends all the
    same. What is on the disk is whole or not there, so nothing is lost by that."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        while heard.recv(1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        time.sleep(GRACE)
        if not _said.is_set():
            say()
        told.close()  # kept open until now
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def say() -> int:
    """Say what is true of the interrupted command. Returns its exit code."""
    _said.set()
    print(_sentences[-1], file=sys.stderr, flush=True)
    return 3


@contextlib.contextmanager
def keeps_what_is_finished(again: str) -> Iterator[None]:
    """For work that goes on later: an interrupt says how (`again`), and ends the command."""
    import typer  # slow, and a signal may come before

    _sentences.append(f"Interrupted; what was finished is kept, {again} to go on.")
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(say()) from None
    finally:
        _sentences.pop()
