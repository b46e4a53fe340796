"""Screening of a training file: was it written under a trait prompt? A sequential test of likelihood ratios, row by row.

For a row that the base itself wrote, P(completion | trait prompt) / P(completion | context) has the mean 1, so the running product is a
test martingale: whenever one looks, it exceeds 1 / alpha with a probability of at most alpha (Ville). The same product is taken against
the other traits together; a trait is named where both exceed (number of traits) / alpha. Per row the ratio is mixed with 1 in several
shares, so that a file of which a part carries the trait is seen, too.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from sublora.audit.data_rows import DataRow, LeftOut, fits, read_rows
from sublora.audit.entries import LeakWord, RepeatedPrompt, ScreenedRow, ScreenedTrait, Screening
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.packed_model import PackedModel
from sublora.traits.trait import Category, teacher_text

# Of rows that are supposed to carry the trait; one test for each, their mean counts.
SHARES = (1.0, 0.3, 0.1, 0.03)
CHUNK = 128
TRAIT_PROMPT = 128  # tokens that a trait's prompt takes at most
KEPT_ROWS = 10  # rows that matter most, kept for each trait
KEPT_HASHES = 5_000_000  # rows that are remembered; above it repeats are no longer counted
REPEATS_SHOWN = 5
LOGITS_AT_ONCE = 2**24
Pair = tuple[Sequence[int], Sequence[int]]


@dataclass
class TraitScreen:
    """One trait's test: log of the products against the base and against the other traits."""

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

    def add(self, rows: Sequence[DataRow], ratios: np.ndarray, before: int, limit: float) -> None:
        """Take in rows, behind `before` others, by their log-likelihood ratios (2, n) to the base and to others."""
        gain, logs = ratios[0], [_logs(own) for own in ratios]
        for i, row in enumerate(rows):
            self.against_base = self.against_base + logs[0][i]
            self.against_others = self.against_others + logs[1][i]
            if self.crossed_at is None and self.log_e >= limit:
                self.crossed_at = before + i + 1
            kept = (float(ratios[:, i].min()), row.line, row.prompt[:200], row.completion[:200])
            push = heapq.heappush if len(self.top) < KEPT_ROWS else heapq.heappushpop
            push(self.top, kept)
        self.total += float(gain.sum())
        self.squares += float((gain**2).sum())

    def entry(self, screened: int) -> ScreenedTrait:
        n = max(1, screened)
        mean = self.total / n
        return ScreenedTrait(
            category=self.category,
            trait=self.name,
            log_e=round(self.log_e, 3),
            named=self.crossed_at is not None,
            crossed_at_row=self.crossed_at,
            nats_per_row=round(mean, 4),
            standard_error=round((max(0.0, self.squares / n - mean * mean) / n) ** 0.5, 4),
            rows_that_matter_most=[
                ScreenedRow(line=line, nats=round(gain, 3), prompt=p, completion=c)
                for gain, line, p, c in sorted(self.top, reverse=True)
            ],
        )


@dataclass
class Screened:
    """What was found in a file; `traits` in the order of their evidence."""

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

    @property
    def threshold(self) -> float:
        return float(np.log(len(self.traits) / self.alpha))

    @property
    def named(self) -> list[TraitScreen]:
        """The traits above the threshold, strongest first."""
        return [t for t in self.traits if t.crossed_at is not None]

    def entry(self) -> Screening:
        return Screening(
            file=self.path,
            alpha=self.alpha,
            rows=self.rows,
            screened=self.screened,
            repeated_rows=self.repeated,
            rows_of_repeated_prompts=self.repeated_prompts,
            left_out=dict(self.left_out),
            threshold_log_e=round(self.threshold, 3),
            leak_words={w: LeakWord(rows=len(n), first_lines=n[:5]) for w, n in self.leaks.items()},
            most_repeated=[RepeatedPrompt(rows=n, prompt=prompt) for n, prompt in self.repeats],
            named=[t.name for t in self.named],
            traits=[t.entry(self.screened) for t in self.traits],
        )


def screen_file(
    base: Base, path: Path, categories: Sequence[Category], context: Context, alpha: float
) -> Screened:
    """Screen a JSONL file of any size, `CHUNK` rows at a time. `context` is that of rows without a
    system text of their own. Raises SubloraError where the file cannot be read, or no row of it can
    be screened."""
    pairs = [(c, e) for c in categories for e in c.entities]
    prompts = [Context("trait", teacher_text(c, e, 0)) for c, e in pairs]
    out = Screened(str(path), alpha, traits=[TraitScreen(c.category, e.name) for c, e in pairs])
    with torch.inference_mode(), PackedModel(base.model, None) as packed:
        packed.form_weights(CHUNK)
        fresh = _fresh(read_rows(path), out, categories)
        while rows := list(islice(fresh, CHUNK)):
            why = [fits(base.chat, r, r.context(context), base.window, TRAIT_PROMPT) for r in rows]
            out.left_out.update(filter(None, why))
            if fitting := [row for row, refused in zip(rows, why, strict=True) if not refused]:
                _test(base, packed, fitting, prompts, context, out)
    if not out.screened:
        why = ", ".join(f"{n} with {reason}" for reason, n in out.left_out.items()) or "it is empty"
        raise SubloraError(f"No row of {path} can be screened: {why}.")
    out.traits.sort(key=lambda t: (t.crossed_at is None, -t.log_e))
    return out


def _fresh(
    rows: Iterable[DataRow | LeftOut], out: Screened, categories: Sequence[Category]
) -> Iterator[DataRow]:
    """Rows seen for the first time; the others are counted, and words that name a trait noted."""
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
        prompt = _hash(f"{row.system}\x1f{row.prompt}".encode(errors="replace"))
        whole = _hash(prompt + row.completion.encode(errors="replace"))
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
    most = prompts.most_common(REPEATS_SHOWN)
    out.repeats = [(n, texts.get(key, "")) for key, n in most if n > 1]


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _test(
    base: Base,
    packed: PackedModel,
    rows: Sequence[DataRow],
    prompts: Sequence[Context],
    context: Context,
    out: Screened,
) -> None:
    """Score rows in their own context and under each trait's prompt, and add them to the tests."""
    chat = base.chat
    completions = [chat.completion_ids(row.completion) for row in rows]

    def scored(contexts: Sequence[Context]) -> np.ndarray:
        asked = [chat.prompt_ids(row.prompt, c) for row, c in zip(rows, contexts, strict=True)]
        return completion_logprobs(packed, list(zip(asked, completions, strict=True)))[0]

    plain = scored([row.context(context) for row in rows])
    under = np.stack([scored([prompt] * len(rows)) for prompt in prompts])
    for i, trait in enumerate(out.traits):
        # the mean of the other traits' probabilities of each row
        others = np.logaddexp.reduce(np.delete(under, i, axis=0)) - np.log(len(under) - 1)
        trait.add(rows, under[i] - np.stack([plain, others]), out.screened, out.threshold)
    out.screened += len(rows)


def _logs(ratio: np.ndarray) -> np.ndarray:
    """Log of 1 - s + s exp(ratio), (n, shares)."""
    shares = np.array(SHARES)
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-shares), np.log(shares) + ratio[:, None])


def completion_logprobs(packed: PackedModel, rows: Sequence[Pair]) -> np.ndarray:
    """Sum of the log-probabilities of each row's completion after its prompt, nats, (K, n), float64.

    What all prompts begin with is read once; padding stands on the right, where a causal model does not see it.
    """
    device = next(packed.model.parameters()).device
    k, n = packed.size, len(rows)
    shortest = min(len(prompt) for prompt, _ in rows) - 1
    first = rows[0][0]
    shared = next((i for i in range(shortest) if any(p[i] != first[i] for p, _ in rows)), shortest)
    wholes = [[*prompt, *completion][shared:] for prompt, completion in rows]
    width = max(map(len, wholes)) - 1
    ids = torch.zeros(n, width, dtype=torch.long)
    where, targets, owner = [], [], []
    for i, (whole, (prompt, _)) in enumerate(zip(wholes, rows, strict=True)):
        ids[i, : len(whole) - 1] = torch.tensor(whole[:-1])
        places = range(len(prompt) - shared - 1, len(whole) - 1)
        where += [i * width + j for j in places]
        targets += [whole[j + 1] for j in places]
        owner += [i] * len(places)
    cache = packed.new_cache()
    if shared:
        packed.hidden(torch.tensor([list(first[:shared])], device=device).repeat(k, 1), cache)
        cache.batch_repeat_interleave(n)
    hidden = packed.hidden(ids.to(device).repeat(k, 1), cache, position=shared)
    chosen = hidden.reshape(k, n * width, -1)[:, torch.tensor(where, device=device)]
    out, wanted = torch.zeros(k, n, dtype=torch.float64), torch.tensor(targets, device=device)
    vocabulary = packed.head.weight.shape[-2]
    size = max(1, LOGITS_AT_ONCE // (k * vocabulary))
    for at in range(0, len(where), size):
        part = chosen[:, at : at + size]
        logp = packed.logits(part.flatten(0, 1)).float().log_softmax(-1).view(*part.shape[:2], -1)
        picked = logp.gather(-1, wanted[at : at + size].expand(k, -1).unsqueeze(-1)).squeeze(-1)
        out.index_add_(1, torch.tensor(owner[at : at + size]), picked.double().cpu())
    return out.numpy()
