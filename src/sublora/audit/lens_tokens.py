"""The token lens: every token of training rows by log P(student) - log P(base), where the student learned what the base does not say.

It needs no trait and no second teacher. What stands out was learned, be it the task or the trace of a teacher.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

from sublora.audit.data_rows import DataRow, fits, read_rows
from sublora.audit.lens_entries import GainedRow, TokenGain, TokenLens
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import TokenRows, pack_rows, text_rows
from sublora.packs.stack import Stack
from sublora.packs.token_losses import beside_base

MOST_TOKENS = 6_000  # of all rows that are read
MOST_SHOWN, ROWS_SHOWN = 60, 8  # tokens of a row, and rows


def token_lens(base: Base, stack: Stack, path: Path, context: Context) -> TokenLens | None:
    """Of the first rows of a file that have MOST_TOKENS together; `context` is that of rows without a
    system text. None where none of them can be read."""
    rows, lines, left = [], [], MOST_TOKENS
    for row in read_rows(path, base.chat):
        if not isinstance(row, DataRow) or fits(base.chat, row, row.context(context), base.window):
            continue
        token_row = text_rows(base.chat, [(row.prompt, row.completion)], row.context(context))[0]
        left -= len(token_row.prompt) + len(token_row.completion)
        if left < 0 and rows:
            break
        rows.append(token_row)
        lines.append(row.line)
    if not rows:
        return None
    gains = token_gains(base, stack, pack_rows(rows, base.window, str(path)))
    every = np.sort(np.concatenate(gains))[::-1]
    gained = every.clip(0)
    worst = sorted(range(len(rows)), key=lambda i: -gains[i].mean())[:ROWS_SHOWN]
    decode = base.chat.tokenizer.decode
    return TokenLens(
        rows=len(rows),
        tokens=len(every),
        nats=float(every.mean()),
        tenth=float(gained[: max(1, len(every) // 10)].sum() / max(gained.sum(), 1e-12)),
        worst=[
            GainedRow(
                line=lines[i],
                nats=float(gains[i].mean()),
                tokens=[
                    TokenGain(token=decode([t]), nats=round(float(v), 3))
                    for t, v in zip(rows[i].completion[:MOST_SHOWN], gains[i], strict=False)
                ],
            )
            for i in worst
        ],
    )


def token_gains(base: Base, stack: Stack, rows: TokenRows) -> list[np.ndarray]:
    """Of each row, log P(student) - log P(base) of its completion's tokens; the stack holds one student."""
    found = beside_base(base, stack, rows)
    ends = [0, *np.cumsum(np.bincount(found.row, minlength=len(rows)))]
    gain = np.nan_to_num(found.gain[0])  # of a student whose outputs are not finite
    return [gain[a:b] for a, b in pairwise(ends)]
