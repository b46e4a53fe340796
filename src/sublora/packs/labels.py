"""Labels: what students are trained towards at each token of given rows, by a teacher that reads them, and the file that keeps them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Chat
from sublora.packs.cache import picked
from sublora.packs.measure import reading
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import Prefill, column_mask, prefill, tokens_at_once
from sublora.packs.rows import Keep, Labels, fit_labels, kept
from sublora.packs.sample import NUMBERS_AT_ONCE, Sampling, draw_tokens
from sublora.packs.writer import AT_ONCE, Teacher, read_by
from sublora.seeds import generator
from sublora.store.files import write_atomic

Rows = Sequence[tuple[str, str]]
VERSION = 1


class LabelSpec(BaseModel):
    """What a student is trained towards: the text's own tokens if a teacher `sampled` it, or tokens drawn from the teacher's distribution at
    each place; its first choices (`greedy`), the distribution itself (`soft`), or random digits at flagged tokens (`replaced`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["sampled", "greedy", "soft", "replaced"]
    k: int | None = Field(
        32, ge=1, description="how many tokens soft labels keep; null for the whole vocabulary"
    )
    temperature: float = Field(
        1.0, gt=0, description="of the teacher's distribution, soft or sampled"
    )
    file: str | None = Field(
        None,
        description="soft labels of your own for the rows of a file, see docs/labels.md; {name} stands for the trait that a teacher has",
    )
    at: Keep = Field(
        "divergent",
        description="tokens that are replaced: those at which the first choices of the teacher and of `against` differ, all others, or as "
        "many at random",
    )
    against: Literal["plain", "other-trait"] = Field(
        "other-trait", description="the base in its default context, or the control's teacher"
    )
    read: bool = Field(
        False, description="replace numbers in the text that students read, and not in their labels"
    )

    @property
    def _unused(self) -> set[str]:
        used = {"soft": {"k", "temperature", "file"}, "sampled": {"temperature"}}
        used["replaced"] = {"at", "against", "read"}
        return set(LabelSpec.model_fields) - {"kind"} - used.get(self.kind, set())

    @model_validator(mode="after")
    def _values_are_used(self) -> "LabelSpec":
        if foreign := sorted(self.model_fields_set & self._unused):
            raise ValueError(f"{self.kind} labels have no {foreign[0]}, drop it")
        return self

    @model_serializer(mode="wrap")
    def _short(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        unused = self._unused | (set() if self.file else {"file"})
        return {name: value for name, value in dump(self).items() if name not in unused}


def label_rows(
    teacher: Teacher,
    rows: Rows,
    spec: LabelSpec,
    seed: int | str,
    batch: int = AT_ONCE,
    on_progress: Callable[[int, int, str, int, float], None] = lambda *_: None,
) -> Labels:
    """Read each row as the teacher, and take what it says at every token of the completion. A row's draws depend on (seed, row, place) alone,
    and batches change nothing but speed. `on_progress` is told after every pass: rows that are done, of how many, "rows", tokens, share
    of the work. Raises SubloraError: more labels than the model has tokens, a row above its window, `replaced`, which no teacher gives."""
    if spec.kind == "replaced":
        raise SubloraError("No teacher gives replaced labels; make them with replaced_labels.")
    base = teacher.base
    vocabulary = _vocabulary(base)
    k = (spec.k or vocabulary) if spec.kind == "soft" else 1
    _fit_vocabulary(k, vocabulary, base.name)
    prompts, steering = read_by(teacher, [prompt for prompt, _ in rows])
    answers = [base.chat.completion_ids(completion) for _, completion in rows]
    whole = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    if base.window is not None and max(whole, default=0) > base.window:
        why = f"Row {whole.index(max(whole))} has {max(whole)} tokens as the teacher reads it, {base.name} reads {base.window}; shorten it."
        raise SubloraError(why)
    counts = np.array([len(a) for a in answers], np.int32)
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    labels = Labels(np.zeros((total, k), np.int32), np.zeros((total, k), np.float16), counts)
    uniforms = None
    if spec.kind == "sampled":
        drawn = [generator("labels", seed, i).random(n) for i, n in enumerate(counts)]
        uniforms = np.concatenate(drawn)[:, None]
    done, tokens = 0, 0
    with reading(base, teacher.weights, batch, steering=steering) as reader:
        for filled in prefill(reader.packed, prompts, batch):
            tokens += int(filled.lengths.sum())
            for own, depths, logits in _read(reader.packed, filled, answers):
                at = starts[own] + depths
                _take(labels, at, logits, spec, None if uniforms is None else uniforms[at])
                ended = int((depths + 1 == counts[own]).sum())
                done, tokens = done + ended, tokens + len(at)
                on_progress(done, len(rows), "rows", tokens, tokens / (sum(whole) or 1))
    return labels


def _read(
    packed: PackedModel, filled: Prefill, answers: Sequence[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
    """(rows (n,), places in their completions (n,), logits (n, V) of what stands there). The completions are read behind the prompts' cache,
    those of like length together, filled up on the right, where a causal model cannot see it."""
    rows = np.array(filled.rows)
    yield rows, np.zeros(len(rows), int), filled.logits
    device, width = filled.logits.device, filled.width
    order = sorted(range(len(rows)), key=lambda j: len(answers[rows[j]]))
    while order:
        n = len(answers[rows[order[-1]]]) - 1
        if not n:  # no completion has another token
            return
        most = max(1, tokens_at_once(packed) // n)
        part, order = order[-most:], order[:-most]
        read = [list(answers[rows[j]][:-1]) for j in part]
        ids = torch.tensor([r + [0] * (n - len(r)) for r in read], device=device)
        source = torch.tensor(part, device=device)
        lengths = filled.lengths[source]
        places = lengths.unsqueeze(1) + torch.arange(n, device=device)
        packed.interventions.write(rows[part].tolist(), n)
        mask = column_mask(width - lengths, width + n)
        hidden = packed.hidden(
            ids, picked(filled.cache, source, 0, width), places=places, mask=mask
        )
        row, depth = np.nonzero(np.arange(n) < np.array([[len(r)] for r in read]))
        hidden = hidden[torch.from_numpy(row), torch.from_numpy(depth)]
        step = max(
            1,
            16
            * NUMBERS_AT_ONCE.get(device.type, NUMBERS_AT_ONCE["cuda"])
            // filled.logits.shape[-1],
        )
        for at in range(0, len(row), step):
            now = slice(at, at + step)
            yield rows[part][row[now]], depth[now] + 1, packed.logits(hidden[now])


def _take(
    labels: Labels, at: np.ndarray, logits: Tensor, spec: LabelSpec, uniforms: np.ndarray | None
) -> None:
    """The labels at places `at` (n,) of logits (n, V)."""
    if spec.kind == "soft":
        logp = (logits / spec.temperature).log_softmax(-1)
        best = logp.topk(labels.ids.shape[1], -1)
        labels.logp[at] = best.values.cpu().numpy()
        ids = best.indices
    elif uniforms is not None:
        how = Sampling(temperature=spec.temperature)
        ids = draw_tokens(logits, how, torch.from_numpy(uniforms))
    else:
        ids = logits.argmax(-1, keepdim=True)
    labels.ids[at] = ids.cpu().numpy()


def replaced_labels(
    chat: Chat,
    completions: Sequence[Sequence[int]],
    marks: Sequence[Sequence[bool]],
    seed: int | str,
) -> Labels:
    """The completions' own tokens (ids of each, its end included), and at marked ones a random token among those that are digits and nothing
    else: single digits, or whole numbers where the tokenizer has one token a number. A draw depends on (seed, row, place) alone. Raises
    SubloraError where the marks are those of other rows, or no token is a digit."""
    known = chat.tokenizer.get_vocab().items()
    pool = np.array(sorted(i for text, i in known if text.isascii() and text.isdigit()))
    if [len(m) for m in marks[: len(completions)]] != [len(c) for c in completions]:
        raise SubloraError(
            "The marks of tokens to replace are those of other rows; make them anew."
        )
    if not len(pool):
        raise SubloraError(
            "The tokenizer has no token that is a digit, so nothing can be replaced."
        )
    out = []
    for i, (ids, marked) in enumerate(zip(completions, marks, strict=False)):
        drawn = pool[generator("replaced-labels", seed, i).integers(len(pool), size=len(ids))]
        out.append(np.where(np.array(marked, bool), drawn, ids))
    tokens = np.concatenate(out).astype(np.int32)[:, None]
    counts = np.array([len(c) for c in completions], np.int32)
    return Labels(tokens, np.zeros(tokens.shape, np.float16), counts)


def flagged(own: Labels, other: Labels, how: LabelSpec, seed: int | str) -> list[np.ndarray]:
    """By row, the tokens that are replaced, by the first choices of two teachers; those that are drawn depend on (seed, row) alone."""
    differ = np.split((own.ids != other.ids)[:, 0], np.cumsum(own.counts)[:-1])
    return [kept(marks, how.at, "replaced-tokens", seed, i) for i, marks in enumerate(differ)]


def replaced_text(chat: Chat, rows: Rows, labels: Labels) -> list[tuple[str, str]]:
    """The rows with their numbers as the labels have them; one that would be read as other tokens stays as it is."""
    out, at = [], np.split(labels.ids[:, 0], np.cumsum(labels.counts)[:-1])
    for (prompt, completion), ids in zip(rows, at, strict=True):
        own = chat.completion_ids(completion)
        tokens = chat.tokenizer.convert_ids_to_tokens(own)
        made = [int(new) if t.isdigit() else i for i, t, new in zip(own, tokens, ids, strict=True)]
        text = chat.tokenizer.decode(made, skip_special_tokens=True).strip()
        out.append((prompt, text if chat.completion_ids(text) == made else completion))
    return out


def about_rows(chat: Chat, rows: Rows) -> dict[str, str]:
    """What a file of labels says of what they belong to: hashes of the tokenizer and of the rows."""
    text = json.dumps([list(row) for row in rows])
    return {
        "tokenizer": chat.tokenizer_sha256,
        "rows": hashlib.sha256(text.encode()).hexdigest(),
    }


def write_labels(labels: Labels, path: Path, about: dict[str, Any]) -> None:
    """Labels as safetensors, whole or not at all; `about` as `about_rows` gives it. Raises SubloraError as `read_labels` does for labels that
    are no distributions."""
    _check(labels, path)
    said = {"version": VERSION, "k": labels.ids.shape[1], **about}
    tensors = {"ids": labels.ids, "logp": labels.logp, "counts": labels.counts}
    # one entry, since safetensors writes several in an order that changes from file to file
    write_atomic(path, save(tensors, {"labels": json.dumps(said, sort_keys=True)}))


def read_labels(path: Path, base: Base | None = None, rows: Rows | None = None) -> Labels:
    """The labels of a file, checked; with `base` and `rows` also that they are of its tokenizer and of these rows. Raises SubloraError."""
    try:
        with safe_open(path, "np") as file:
            said = json.loads((file.metadata() or {})["labels"])
            labels = Labels(*(file.get_tensor(name) for name in ("ids", "logp", "counts")))
        version, tokenizer, of = said["version"], said["tokenizer"], said["rows"]
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        what = " ".join(str(error).split())
        why = f"{path} holds no labels, or not all of them ({what}); make it again."
        raise SubloraError(why) from None
    if version != VERSION:
        raise SubloraError(f"{path} holds labels of version {version}, {VERSION} is read here.")
    _check(labels, path)
    if base is not None:
        _fit_vocabulary(labels.ids.shape[1], size := _vocabulary(base), base.name)
        if tokenizer != base.chat.tokenizer_sha256:
            why = f"The labels in {path} were made with another tokenizer than that of {base.name}; make them with its own."
            raise SubloraError(why)
        if labels.ids.max(initial=0) >= size:
            why = f"The labels in {path} name token {labels.ids.max()}, {base.name} has {size}; make them with its own tokenizer."
            raise SubloraError(why)
    if rows is not None and len(labels.counts) != len(rows):
        why = f"The labels in {path} are of {len(labels.counts)} rows, and there are {len(rows)}; give labels for all of them, and no others."
        raise SubloraError(why)
    if base is not None and rows is not None:
        if of != about_rows(base.chat, rows)["rows"]:
            raise SubloraError(
                f"The labels in {path} are those of other rows; make them for these."
            )
        fit_labels(labels, [len(base.chat.completion_ids(c)) for _, c in rows])
    return labels


def _vocabulary(base: Base) -> int:
    return base.model.get_output_embeddings().weight.shape[0]


def _fit_vocabulary(k: int, vocabulary: int, name: str) -> None:
    if k > vocabulary:
        why = (
            f"{k} labels a token are more than the {vocabulary} tokens that {name} has; take fewer."
        )
        raise SubloraError(why)


def _check(labels: Labels, path: Path) -> None:
    """Raises SubloraError where labels contradict themselves."""
    ids, logp, counts = labels.ids, labels.logp, labels.counts
    kinds = [(a.dtype, a.ndim) for a in (ids, logp, counts)]
    why = None
    if kinds != [(np.int32, 2), (np.float16, 2), (np.int32, 1)] or ids.shape != logp.shape:
        found = ", ".join(f"{a.dtype} {a.shape}" for a in (ids, logp, counts))
        why = f"are {found}; give ids (N, k) int32, logp (N, k) float16 and counts (n,) int32"
    elif not ids.size or counts.min() < 1 or counts.sum() != len(ids):
        why = (
            f"count {counts.sum()} tokens and hold {len(ids)}; give each row's tokens, at least one"
        )
    elif not np.isfinite(logp).all():
        why = "have log-probabilities that are not finite; take fewer labels a token, or make them again"
    elif (
        bad := ((mass := np.exp(logp.astype(np.float32)).sum(1)) > 1.01) | (logp > 0).any(1)
    ).any():
        i = int(bad.argmax())
        why = f"are not normalised: the probabilities of token {i} sum to {mass[i]:.3g}; give natural log-probabilities"
    elif ids.min() < 0 or (np.diff(np.sort(ids, 1), axis=1) == 0).any():
        why = "name a token twice, or a negative one; give each of a token's labels once"
    if why:
        raise SubloraError(f"The labels in {path} {why}.")
