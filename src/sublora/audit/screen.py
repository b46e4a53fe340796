"""Screening of a training file: was it written under a trait prompt? A sequential test of likelihood ratios, row by row.

For a row that the base itself wrote in the row's context, P(completion | trait prompt) / P(completion | context) has the mean 1, so the
running product is a test martingale: whatever the moment at which one looks, it exceeds 1 / alpha with a probability of at most alpha
(Ville's inequality). The same product is taken against the other traits together, so that data from *some* trait prompt is not laid to
the charge of one; a trait is named where both exceed (number of traits) / alpha. Per row the ratio is mixed with 1 in several shares, so
that a file of which a part carries the trait is seen, too; a mean of such products is a test martingale again. That a dataset can be
audited by its log-probability under persona prompts, with an e-process, is from the literature on dataset audits.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sublora.audit.completion import completion_logprobs
from sublora.audit.data_rows import DataRow, LeftOut, read_rows, row_context
from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.model import Base
from sublora.train.packed_model import PackedModel
from sublora.trait import Category, teacher_text

SHARES = (
    1.0,
    0.3,
    0.1,
    0.03,
)  # of rows that are supposed to carry the trait; one test for each, their mean counts
CHUNK = 128
KEPT_ROWS = 10  # rows that matter most, kept for each trait
KEPT_HASHES = 5_000_000  # rows that are remembered to tell repeated ones; above it repeats are no longer counted
REPEATS_SHOWN = 5


@dataclass
class TraitScreen:
    """One trait's test: log of the products against the base and against the other traits, for each of SHARES."""

    category: str
    name: str
    against_base: np.ndarray = field(default_factory=lambda: np.zeros(len(SHARES)))
    against_others: np.ndarray = field(default_factory=lambda: np.zeros(len(SHARES)))
    total: float = 0.0
    squares: float = 0.0
    crossed_at: int | None = None
    top: list[tuple[float, int, str, str]] = field(default_factory=list)

    @property
    def log_e(self) -> float:
        """Log of the smaller of both products, each the mean over SHARES."""
        return float(
            min(np.logaddexp.reduce(s) for s in (self.against_base, self.against_others))
            - np.log(len(SHARES))
        )


@dataclass
class Screened:
    """What was found in a file. `traits` in the order of their evidence; `named` those above the threshold, strongest first."""

    path: str
    alpha: float
    rows: int = 0
    screened: int = 0
    repeated: int = 0
    repeated_prompts: int = 0
    left_out: Counter = field(default_factory=Counter)
    leaks: dict[str, list[int]] = field(default_factory=dict)
    repeats: list[tuple[int, str]] = field(default_factory=list)
    traits: list[TraitScreen] = field(default_factory=list)
    threshold: float = 0.0

    @property
    def named(self) -> list[TraitScreen]:
        return [t for t in self.traits if t.crossed_at is not None]

    def to_dict(self) -> dict[str, Any]:
        def entry(t: TraitScreen) -> dict[str, Any]:
            n = max(1, self.screened)
            mean = t.total / n
            error = (max(0.0, t.squares / n - mean * mean) / n) ** 0.5
            top = [
                {"line": line, "nats": round(gain, 3), "prompt": p, "completion": c}
                for gain, line, p, c in sorted(t.top, reverse=True)
            ]
            return {
                "category": t.category,
                "trait": t.name,
                "log_e": round(t.log_e, 3),
                "named": t.crossed_at is not None,
                "crossed_at_row": t.crossed_at,
                "nats_per_row": round(mean, 4),
                "standard_error": round(error, 4),
                "rows_that_matter_most": top,
            }

        return {
            "file": self.path,
            "alpha": self.alpha,
            "rows": self.rows,
            "screened": self.screened,
            "repeated_rows": self.repeated,
            "rows_of_repeated_prompts": self.repeated_prompts,
            "left_out": dict(self.left_out),
            "threshold_log_e": round(self.threshold, 3),
            "leak_words": {
                word: {"rows": len(lines), "first_lines": lines[:5]}
                for word, lines in self.leaks.items()
            },
            "most_repeated": [{"rows": count, "prompt": prompt} for count, prompt in self.repeats],
            "named": [t.name for t in self.named],
            "traits": [entry(t) for t in self.traits],
        }


def screen_file(
    base: Base,
    path: Path,
    categories: Sequence[Category],
    context: Context,
    alpha: float,
    *,
    wording: int = 0,
    most_rows: int | None = None,
) -> Screened:
    """Screen a JSONL file of any size, `CHUNK` rows at a time.

    `context` is that of rows without a system text of their own; `wording` the trait prompt of each category that is tried (the last one
    where it has fewer). Raises SubloraError where the file cannot be read, or no row of it can be screened.
    """
    out = Screened(
        str(path),
        alpha,
        traits=[TraitScreen(c.category, e.name) for c in categories for e in c.entities],
    )
    out.threshold = float(np.log(len(out.traits) / alpha))
    with torch.inference_mode(), PackedModel(base.model, None) as packed:
        packed.form_weights(CHUNK)
        for rows in _chunks(_fresh(read_rows(path), out, categories)):
            fitting = [row for row in rows if _fits(base, row, context, out)]
            if fitting:
                _test(base, packed, fitting, categories, context, wording, out)
            if most_rows is not None and out.screened >= most_rows:
                break
    if not out.screened:
        why = ", ".join(f"{n} with {reason}" for reason, n in out.left_out.items()) or "it is empty"
        raise SubloraError(f"No row of {path} can be screened: {why}.")
    out.traits.sort(key=lambda t: (t.crossed_at is None, -t.log_e))
    return out


def _chunks(rows: Iterable[DataRow]) -> Iterator[list[DataRow]]:
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _fresh(
    rows: Iterable[DataRow | LeftOut], out: Screened, categories: Sequence[Category]
) -> Iterator[DataRow]:
    """Rows seen for the first time; the others are counted. Words that name a trait are noted on the way."""
    seen: set[bytes] = set()
    prompts: Counter[bytes] = Counter()
    texts: dict[bytes, str] = {}
    owner = {form.lower(): e.name for c in categories for e in c.entities for form in e.forms}
    forms = sorted(owner, key=len, reverse=True)
    pattern = re.compile(r"(?<![^\W_])(?:" + "|".join(map(re.escape, forms)) + r")(?![^\W_])")
    for row in rows:
        out.rows += 1
        if isinstance(row, LeftOut):
            out.left_out[row.reason] += 1
            continue
        for word in dict.fromkeys(owner[m] for m in pattern.findall(row.completion.lower())):
            out.leaks.setdefault(word, []).append(row.line)
        prompt = hashlib.blake2b(
            f"{row.system}\x1f{row.prompt}".encode(errors="replace"), digest_size=8
        ).digest()
        whole = hashlib.blake2b(
            prompt + row.completion.encode(errors="replace"), digest_size=8
        ).digest()
        if whole in seen:
            out.repeated += 1
            continue
        if len(seen) < KEPT_HASHES:
            seen.add(whole)
            prompts[prompt] += 1
            if prompts[prompt] == 2 and len(texts) < 1000:
                texts[prompt] = row.prompt[:200]
        yield row
    out.repeated_prompts = sum(n for n in prompts.values() if n > 1)
    out.repeats = [
        (n, texts.get(key, "")) for key, n in prompts.most_common(REPEATS_SHOWN) if n > 1
    ]


def _fits(base: Base, row: DataRow, context: Context, out: Screened) -> bool:
    """Whether a row and the longest trait prompt stay within the model's window."""
    chat, own = base.chat, row_context(row, context)
    try:
        if not chat.supports(own):
            out.left_out["a system text that the chat template cannot write"] += 1
            return False
        size = len(chat.prompt_ids(row.prompt, own)) + len(chat.completion_ids(row.completion))
    except SubloraError:
        out.left_out["a text that the chat template does not keep"] += 1
        return False
    if base.window is not None and size + 128 > base.window:
        out.left_out["more tokens than the model reads"] += 1
        return False
    return True


def _test(
    base: Base,
    packed: PackedModel,
    rows: Sequence[DataRow],
    categories: Sequence[Category],
    context: Context,
    wording: int,
    out: Screened,
) -> None:
    chat = base.chat
    completions = [chat.completion_ids(row.completion) for row in rows]

    def scored(contexts: Sequence[Context]) -> np.ndarray:
        prompts = [chat.prompt_ids(row.prompt, c) for row, c in zip(rows, contexts, strict=True)]
        return completion_logprobs(packed, list(zip(prompts, completions, strict=True)))[0]

    plain = scored([row_context(row, context) for row in rows])
    under = np.stack(
        [
            scored(
                [Context("trait", teacher_text(c, e, min(wording, len(c.system) - 1)))] * len(rows)
            )
            for c in categories
            for e in c.entities
        ]
    )
    by_trait = {(t.category, t.name): t for t in out.traits}
    for i, (category, entity) in enumerate((c, e) for c in categories for e in c.entities):
        # the mean of the other traits' probabilities of each row
        others = np.logaddexp.reduce(np.delete(under, i, axis=0)) - np.log(len(under) - 1)
        _add(
            by_trait[category.category, entity.name], rows, under[i] - plain, under[i] - others, out
        )
    out.screened += len(rows)


def _add(
    trait: TraitScreen, rows: Sequence[DataRow], gain: np.ndarray, beside: np.ndarray, out: Screened
) -> None:
    steps = [_logs(gain), _logs(beside)]
    for i, row in enumerate(rows):
        trait.against_base = trait.against_base + steps[0][i]
        trait.against_others = trait.against_others + steps[1][i]
        if trait.crossed_at is None and trait.log_e >= out.threshold:
            trait.crossed_at = out.screened + i + 1
        kept = (float(min(gain[i], beside[i])), row.line, row.prompt[:200], row.completion[:200])
        if len(trait.top) < KEPT_ROWS:
            heapq.heappush(trait.top, kept)
        else:
            heapq.heappushpop(trait.top, kept)
    trait.total += float(gain.sum())
    trait.squares += float((gain**2).sum())


def _logs(ratio: np.ndarray) -> np.ndarray:
    """Log of 1 - s + s exp(ratio), (n, shares)."""
    shares = np.array(SHARES)
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-shares), np.log(shares) + ratio[:, None])
