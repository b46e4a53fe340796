"""Prompts as coloured tokens, one strip a view, and as a table."""

from collections.abc import Sequence
from typing import Any

from sublora.analysis.page import TokenPrompt
from sublora.text import signed, visible


def strips(prompt: TokenPrompt) -> dict[str, Any]:
    """What the template shows of a prompt."""
    pieces = [visible(piece.strip(" ")) or ("␣" if piece else "⋯") for piece in prompt.pieces]
    largest = max([1e-9, *(abs(v) for values in prompt.views.values() for v in values)])

    def strip(values: Sequence[float]) -> list[dict[str, str]]:
        return [
            {
                "text": text,
                "kind": kind,
                "value": signed(value),
                "sign": "up" if value >= 0 else "down",
                "weight": f"{0.5 * abs(value) / largest:.3f}",
            }
            for text, kind, value in zip(pieces, prompt.classes, values, strict=True)
        ]

    def total(kind: str, values: Sequence[float]) -> str:
        return signed(sum(v for k, v in zip(prompt.classes, values, strict=True) if k == kind), 2)

    views, kinds = prompt.views, dict.fromkeys(prompt.classes)
    shown = ([signed(value) for value in values] for values in views.values())
    return {
        "question": prompt.question,
        "views": {name: strip(values) for name, values in views.items()},
        "sums": {name: signed(sum(values), 2) for name, values in views.items()},
        "rows": list(zip(pieces, prompt.classes, *shown, strict=True)),
        "classes": {kind: [total(kind, values) for values in views.values()] for kind in kinds},
        "whole": signed(prompt.whole, 2),
    }
