"""Prompts as coloured tokens, one strip a view, and as a table."""

from typing import Any

from sublora.analysis.page import TokenPrompt
from sublora.text import signed, visible


def strips(prompt: TokenPrompt) -> dict[str, Any]:
    """What the template shows of a prompt."""
    pieces = [visible(piece.strip(" ")) or "␣" for piece in prompt.pieces]
    largest = max([1e-9, *(abs(v) for values in prompt.views.values() for v in values)])
    every = list(zip(pieces, prompt.classes, *prompt.views.values(), strict=True))
    sums = {
        kind: [
            signed(sum(r[k + 2] for r in every if r[1] == kind), 2)
            for k in range(len(prompt.views))
        ]
        for kind in dict.fromkeys(prompt.classes)
    }
    return {
        "question": prompt.question,
        "views": {
            name: [
                {
                    "text": row[0],
                    "kind": row[1],
                    "value": signed(row[k + 2]),
                    "sign": "up" if row[k + 2] >= 0 else "down",
                    "weight": f"{0.5 * abs(row[k + 2]) / largest:.3f}",
                }
                for row in every
            ]
            for k, name in enumerate(prompt.views)
        },
        "sums": {name: signed(sum(values), 2) for name, values in prompt.views.items()},
        "rows": [(text, kind, *map(signed, values)) for text, kind, *values in every],
        "classes": sums,
        "whole": signed(prompt.whole, 2),
    }
