"""The versions that a release was tested with are those of the lock, and a newer one is named."""

import re
from pathlib import Path

import pytest

from command import sublora
from sublora.runner import tested

ROOT = Path(__file__).parent.parent


def test_the_versions_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements-tested.txt").read_text() + (ROOT / "Makefile").read_text()
    for name, minor in tested.TESTED.items():
        assert re.search(rf"\b{name}=={re.escape(minor)}\.", lock), name


def test_only_what_is_newer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "version", lambda name: tested.TESTED[name] + ".9+cpu")
    assert tested.newer() is None
    here = {"torch": "3.0.1", "peft": "0.22", "numpy": "1.26.4", "scipy": "1.9.0"}
    monkeypatch.setattr(tested, "version", lambda name: here.get(name, tested.TESTED[name]))
    said = tested.newer() or ""
    assert (
        "torch 3.0.1 (tested: 2.13) and peft 0.22 (tested: 0.21)." in said and "scipy" not in said
    )
    assert said in sublora("env").out
