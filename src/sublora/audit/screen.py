"""Screening of a training file: was it written under a trait prompt? A sequential test of likelihood ratios, row by row.

Rows are clean where the base itself wrote them, all by one and the same *decoding* of `decodings.py` (a temperature with top_k and
top_p) in one of a few contexts. Each of these is a null of its own. For rows of null k, P(completion | trait prompt) / P_k(completion) has
a mean of at most 1, whatever distribution stands above, as long as it is fixed before the row is read; so the running product is a test
supermartingale, which ever exceeds 1 / alpha with a probability of at most alpha (Ville). A trait is named where the *smallest* product
over all nulls exceeds (number of traits) / alpha: whichever null is true, its product is one of them, so the rate holds under each.

- P_k is cut off and renormalised as the decoding says. A token that it cuts off counts with SLIP of its plain probability, which only
  raises P_k, so the mean stays at most 1.
- The distribution above is the trait's, drawn by the decoding that fits the rows *before* this one best, with the same SLIP, normalised.
- A null that fits FAR nats worse than another one (with its SLIP normalised) is no longer followed: if it is true, that has a probability
  of at most e^-FAR for each other null.

The product is also taken against the other traits together, at the plain and at the fitted decoding, so that the right trait is named; this
holds for rows of another trait that were drawn in one of these two ways. Per row the ratio is mixed with 1 in several shares, so that a
file of which a part carries the trait is seen, too. Rows that were chosen by what they say are not the base's own distribution: where a filter keeps
a share z of its answers, the mean is at most 1 / z.
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

from sublora.audit.data_file import row_word
from sublora.audit.data_rows import DataRow, LeftOut, fits, read_rows
from sublora.audit.decodings import (
    DECODINGS,
    PLAIN,
    SLIP,
    clean_contexts,
    described,
    drawn_log_probabilities,
)
from sublora.audit.entries import LeakWord, RepeatedPrompt, ScreenedRow, ScreenedTrait, Screening
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.packed_model import PackedModel
from sublora.packs.sample import Sampling
from sublora.traits.trait import Category, teacher_text

# Of rows that are supposed to carry the trait; one test for each, their mean counts.
SHARES = (1.0, 0.3, 0.1, 0.03)
CHUNK = 128
FAR = 50.0  # nats
PATIENCE = 5.0  # nats by which a decoding must fit better than the plain one before it is taken
TRAIT_PROMPT = 128  # tokens that a trait's prompt takes at most
KEPT_ROWS = 10  # rows that matter most, kept for each trait
KEPT_HASHES = 5_000_000  # rows that are remembered; above it repeats are no longer counted
REPEATS_SHOWN = 5
BROKEN_SHOWN = 10
LOGITS_AT_ONCE = 2**24
Pair = tuple[Sequence[int], Sequence[int]]


class Nulls:
    """How well each context and decoding fits the rows so far; `followed` are those not left behind."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.contexts = list(contexts)
        self.fits = np.zeros(len(self.contexts) * len(DECODINGS))
        self.followed = np.arange(len(self.fits))
        self.slips = 0.0

    def add(self, logs: np.ndarray, slips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take in log-likelihoods (nulls, n), of which `slips` (n,) makes probabilities. Returns for each row the place of the decoding that fits
        the rows before it best, and which of the followed nulls are still followed."""
        before = self.fits[:, None] + np.cumsum(logs, 1) - logs
        best = before.argmax(0)
        clear = before.max(0) - before[PLAIN] > PATIENCE
        self.fits = self.fits + logs.sum(1)
        self.slips += float(slips.sum())
        kept = self.fits[self.followed] > self.fits.max() - self.slips - FAR
        self.followed = self.followed[kept]
        return np.where(clear, best % len(DECODINGS), PLAIN), kept

    @property
    def best(self) -> int:
        return int(self.fits[self.followed].argmax())

    @property
    def told(self) -> str:
        context, decoding = divmod(int(self.fits.argmax()), len(DECODINGS))
        return f"{self.contexts[context].name}, {described(DECODINGS[decoding])}"


@dataclass
class TraitScreen:
    """One trait's test; `products` are logs (nulls followed + 2, shares), the last two against the other traits."""

    category: str
    name: str
    products: np.ndarray
    log_e: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    crossed_at: int | None = None
    top: list[tuple[float, int, str, str]] = field(default_factory=list)

    def add(
        self, rows: Sequence[DataRow], ratios: np.ndarray, best: int, before: int, limit: float
    ) -> None:
        """Take in rows, behind `before` others, by their log-likelihood ratios (nulls + 2, n); `best`
        is the null that fits them."""
        path = self.products[:, None] + _logs(ratios).cumsum(1)
        evidence = np.logaddexp.reduce(path, -1).min(0) - np.log(len(SHARES))
        if self.crossed_at is None and (evidence >= limit).any():
            self.crossed_at = before + int((evidence >= limit).argmax()) + 1
        self.products, self.log_e = path[:, -1], float(evidence[-1])
        least = np.minimum(ratios[best], ratios[-2:].min(0)).tolist()
        for row, nats in zip(rows, least, strict=True):
            kept = (nats, row.line, row.prompt[:200], row.completion[:200])
            push = heapq.heappush if len(self.top) < KEPT_ROWS else heapq.heappushpop
            push(self.top, kept)
        self.total += float(ratios[best].sum())
        self.squares += float((ratios[best] ** 2).sum())

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
    nulls: Nulls
    rows: int = 0
    screened: int = 0
    repeated: int = 0
    repeated_prompts: int = 0
    first_turns: int = 0
    left_out: Counter = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
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
            broken_rows=self.broken,
            first_turns=self.first_turns,
            threshold_log_e=round(self.threshold, 3),
            drawn_as=self.nulls.told,
            leak_words={w: LeakWord(rows=len(n), first_lines=n[:5]) for w, n in self.leaks.items()},
            most_repeated=[RepeatedPrompt(rows=n, prompt=prompt) for n, prompt in self.repeats],
            named=[t.name for t in self.named],
            traits=[t.entry(self.screened) for t in self.traits],
        )


def screen_file(
    base: Base, path: Path, categories: Sequence[Category], context: Context, alpha: float
) -> Screened:
    """Screen a training file of any size, `CHUNK` rows at a time. `context` is that of rows without a
    system text of their own. Raises SubloraError where the file cannot be read, or no row of it can
    be screened."""
    pairs = [(c, e) for c in categories for e in c.entities]
    prompts = [Context("trait", teacher_text(c, e, 0)) for c, e in pairs]
    nulls = Nulls(clean_contexts(base, context))
    products = np.zeros((len(nulls.followed) + 2, len(SHARES)))
    traits = [TraitScreen(c.category, e.name, products) for c, e in pairs]
    out = Screened(str(path), alpha, nulls, traits=traits)
    with torch.inference_mode(), PackedModel(base.model, None) as packed:
        packed.form_weights(CHUNK)
        fresh = _fresh(read_rows(path, base.chat), out, categories)
        while rows := list(islice(fresh, CHUNK)):
            why = [fits(base.chat, r, r.context(context), base.window, TRAIT_PROMPT) for r in rows]
            out.left_out.update(filter(None, why))
            if fitting := [row for row, refused in zip(rows, why, strict=True) if not refused]:
                _test(base, packed, fitting, prompts, out)
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
            out.left_out["broken" if row.broken else row.reason] += 1
            if row.broken and len(out.broken) < BROKEN_SHOWN:
                out.broken.append(f"{row_word(Path(out.path))} {row.line} {row.reason}")
            continue
        out.first_turns += row.more
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
    out: Screened,
) -> None:
    """Score rows under each null and each trait's prompt, and add them to the tests."""
    chat, nulls = base.chat, out.nulls
    completions = [chat.completion_ids(row.completion) for row in rows]

    def scored(contexts: Sequence[Context], decodings: Sequence[Sampling]) -> np.ndarray:
        asked = [chat.prompt_ids(row.prompt, c) for row, c in zip(rows, contexts, strict=True)]
        pairs = list(zip(asked, completions, strict=True))
        return completion_logprobs(packed, pairs, decodings)

    own = [[row.context(nulls.contexts[0]) for row in rows]]
    clean = own + [[c] * len(rows) for c in nulls.contexts[1:]]
    plain = np.concatenate([scored(contexts, DECODINGS) for contexts in clean])
    # with what SLIP adds, a token's probabilities sum to 1 + SLIP at most
    slips = np.log1p(SLIP) * np.array([*map(len, completions)])
    taken, kept = nulls.add(plain, slips)
    used = np.unique([PLAIN, *taken])
    decodings = [DECODINGS[j] for j in used]
    under = np.stack([scored([prompt] * len(rows), decodings) for prompt in prompts])
    fitted = under[:, np.searchsorted(used, taken), np.arange(len(rows))]
    above = fitted - np.where(taken == PLAIN, 0.0, slips)
    both = np.stack([under[:, np.searchsorted(used, PLAIN)], fitted], 1)
    followed = np.append(kept, [True, True])
    for i, trait in enumerate(out.traits):
        # the mean of the other traits' probabilities of each row
        others = np.logaddexp.reduce(np.delete(both, i, axis=0)) - np.log(len(both) - 1)
        ratios = above[i] - np.concatenate([plain[nulls.followed], others])
        trait.products = trait.products[followed]
        trait.add(rows, ratios, nulls.best, out.screened, out.threshold)
    out.screened += len(rows)


def _logs(ratio: np.ndarray) -> np.ndarray:
    """Log of 1 - s + s exp(ratio), (..., shares)."""
    shares = np.array(SHARES)
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-shares), np.log(shares) + ratio[..., None])


def completion_logprobs(
    packed: PackedModel, rows: Sequence[Pair], decodings: Sequence[Sampling] = (Sampling(),)
) -> np.ndarray:
    """Sum of the base's log-probabilities of each row's completion after its prompt, by each decoding,
    nats, (D, n), float64.

    What all prompts begin with is read once; padding stands on the right, where a causal model does not see it.
    """
    device, n = packed.head.weight.device, len(rows)
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
        packed.hidden(torch.tensor([list(first[:shared])], device=device), cache)
        cache.batch_repeat_interleave(n)
    hidden = packed.hidden(ids.to(device), cache, position=shared)
    chosen = hidden.flatten(0, 1)[torch.tensor(where, device=device)]
    out = torch.zeros(len(decodings), n, dtype=torch.float64)
    wanted = torch.tensor(targets, device=device)
    size = max(1, LOGITS_AT_ONCE // packed.head.weight.shape[-2])
    for at in range(0, len(where), size):
        part = slice(at, at + size)
        logs = drawn_log_probabilities(packed.logits(chosen[part]), wanted[part], decodings)
        out.index_add_(1, torch.tensor(owner[part]), logs.double().cpu())
    return out.numpy()
