"""sublora measures whether fine-tuning a language model silently transmits a trait, and settles why.

The public names stand in `__init__.pyi`, which editors and type checkers read as well. Each is loaded when it
is first used, so that `import sublora` costs nothing.
"""

import re
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

_STUB = Path(__file__).with_suffix(".pyi").read_text("utf-8")
_HOME = {name: module for module, name in re.findall(r"from (\S+) import (\w+) as", _STUB)}

__all__ = sorted(_HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sublora")
    if name not in _HOME:
        close = get_close_matches(name, __all__, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise AttributeError(f"module 'sublora' has no attribute '{name}'{hint}")
    return getattr(import_module(_HOME[name]), name)
