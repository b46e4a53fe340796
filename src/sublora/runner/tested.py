"""The versions of libraries that numbers depend on, as this release was tested with them, and what is said of newer ones."""

import re
from importlib.metadata import version

from sublora.text import listed

# Major and minor versions of requirements-tested.txt and of TORCH_SPEC in the Makefile; a test holds them together.
TESTED = {
    "torch": "2.13",
    "transformers": "5.24",
    "peft": "0.21",
    "tokenizers": "0.23",
    "safetensors": "0.8",
    "numpy": "2.4",
    "scipy": "1.17",
}


def newer() -> str | None:
    """A sentence that names what is installed in a newer version than was tested; None where nothing is."""
    here = {name: version(name) for name in TESTED}
    found = [f"{n} {here[n]} (tested: {t})" for n, t in TESTED.items() if _key(here[n]) > _key(t)]
    if not found:
        return None
    return (
        f"Newer than this release of sublora was tested with: {listed(found)}. Numbers may differ in their last digits; "
        "`pip install -c requirements-tested.txt` of the repository installs what was tested."
    )


def _key(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))
