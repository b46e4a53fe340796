"""Where a found trait sits: the student acts in one part alone, or in all but that part, and the trait's rise is read again.

Parts are the classes of prompt tokens, up to three runs of layers, and attention beside feed-forward. An adapter is gated, in all parts
and their complements at once. Full weights cannot be gated by token: there a part of the layers or modules gets the student's weights and
the rest keeps the base's, or the other way round.
Parts act together, so neither view need add up to the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sublora.audit.readings import Readings, read_model
from sublora.audit.statistic import over_questions, question_rises
from sublora.audit.verdict import TraitFinding
from sublora.chat import Context
from sublora.condition import layer_and_group, layer_of
from sublora.errors import SubloraError
from sublora.gate import PackGate
from sublora.measure import candidate_sequences, check_pack_gate, reading
from sublora.model import Base
from sublora.token_classes import TOKEN_CLASSES, PromptTokens, TokenClass, classify
from sublora.train.stack import Stack, full_slots
from sublora.trait import Category

STRONGEST = 3  # traits that are located
LAYER_PARTS = 3
LEAST_RISE = 0.05  # nats; a share of less says nothing, and of none is no number
OTHER = "norms, embeddings and head"
CLASS_NAMES: dict[TokenClass, str] = {
    "template": "template tokens",
    "system": "system text",
    "entity": "names",
    "user": "user text",
    "assistant": "generation prompt",
    "generated": "answer tokens",
}


@dataclass(frozen=True)
class Part:
    """A part of what a student learned: the tokens of a class, or some linear layers or tensors by name."""

    kind: Literal["tokens", "layers", "modules"]
    name: str
    token: TokenClass | None = None
    modules: frozenset[str] = frozenset()

    def on_at(self, token: TokenClass) -> bool:
        return self.token is None or token == self.token

    def on_in(self, module: str) -> bool:
        return self.kind == "tokens" or module in self.modules


def where_it_sits(
    base: Base,
    stack: Stack,
    plain: Readings,
    student: Readings,
    found: Sequence[TraitFinding],
    contexts: Sequence[Context],
    categories: Sequence[Category],
    entities: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The parts of the strongest found traits, each in the context in which it is strongest; None where no trait was found.

    `stack` holds the one student, `plain` and `student` are what was read of the base and of it, `found` is sorted by strength, and
    `entities` are names that count as a class of tokens of their own where they stand in a prompt.
    """
    strongest: dict[tuple[str, str], TraitFinding] = {}
    for finding in found:
        strongest.setdefault((finding.category, finding.trait), finding)
    if not strongest:
        return None
    notes: dict[str, None] = {}
    seen: dict[tuple[str, str], tuple[list[Part], np.ndarray]] = {}
    out = []
    for finding in list(strongest.values())[:STRONGEST]:
        place = (finding.category, finding.context)
        category = next(c for c in categories if c.category == finding.category)
        context = next(c for c in contexts if c.name == finding.context)
        if finding.rise < LEAST_RISE:
            notes[
                f"{finding.trait} was found by its word; beside its category it rose by less than {LEAST_RISE} nats in {finding.context}, so "
                "there is nothing to take apart."
            ] = None
            continue
        if place not in seen:
            read = _read_lora if stack.kind == "lora" else _read_full
            seen[place] = read(
                base, stack, context, category, entities, lambda text: notes.setdefault(text)
            )
        parts, p = seen[place]
        before, after = (
            plain.p[finding.context][finding.category][0],
            student.p[finding.context][finding.category][0],
        )
        e = next(i for i, entity in enumerate(category.entities) if entity.name == finding.trait)
        out.append(
            {
                **{
                    name: getattr(finding, name)
                    for name in ("category", "trait", "context", "before", "after", "rise")
                },
                "questions": len(before),
                "parts": _shares(parts, p, before, question_rises(after, before, e), e),
            }
        )
    return {"found": len(strongest), "findings": out, "not_run": list(notes)}


def _shares(
    parts: Sequence[Part], p: np.ndarray, before: np.ndarray, whole: np.ndarray, entity: int
) -> list[dict[str, Any]]:
    """Each part alone and everything without it: P, rise, and the share of the whole rise with its interval over the questions."""
    out = []
    for i, part in enumerate(parts):
        row: dict[str, Any] = {"kind": part.kind, "part": part.name}
        for view, own in (("alone", p[2 * i]), ("without", p[2 * i + 1])):
            rise = question_rises(own, before, entity)
            share = rise.mean() / whole.mean()
            # a ratio of two means of the same questions, made linear about itself
            interval = over_questions(share + (rise - share * whole) / whole.mean())
            row[view] = {
                "p": float(own[:, entity].mean()),
                "rise": float(rise.mean()),
                "share": interval["estimate"],
                "low": interval["low"],
                "high": interval["high"],
            }
        out.append(row)
    return out


def token_parts(
    tokens: Sequence[PromptTokens], category_sequences: Sequence[Sequence[int]]
) -> list[Part]:
    """One part for each class that the prompts have, and for the answer where some spelling takes several tokens of it."""
    present = {c for t in tokens for c in t.classes} | {
        "generated" for s in category_sequences if len(s) > 1
    }
    return [Part("tokens", CLASS_NAMES[c], token=c) for c in TOKEN_CLASSES if c in present]


def module_parts(names: Sequence[str], group_of: Callable[[str], str]) -> list[Part]:
    """Up to three runs of the layers that `names` stand in, what stands outside of them, and the groups; a kind with one part says
    nothing and is left out."""
    numbers = sorted({n for n in map(layer_of, names) if n is not None})
    runs = (
        [run.tolist() for run in np.array_split(numbers, min(LAYER_PARTS, len(numbers)))]
        if numbers
        else []
    )
    layers = [
        Part(
            "layers",
            f"layers {run[0]} to {run[-1]}" if len(run) > 1 else f"layer {run[0]}",
            modules=frozenset(n for n in names if layer_of(n) in run),
        )
        for run in runs
    ]
    outside = frozenset(n for n in names if layer_of(n) is None)
    if outside:
        layers.append(Part("layers", "outside the layers", modules=outside))
    groups = [
        Part("modules", group, modules=frozenset(n for n in names if group_of(n) == group))
        for group in dict.fromkeys(map(group_of, names))
    ]
    return [part for parts in (layers, groups) if len(parts) > 1 for part in parts]


def _group(module: str) -> str:
    try:
        return layer_and_group(module)[1]
    except SubloraError:
        return "other"


def _read_lora(
    base: Base,
    stack: Stack,
    context: Context,
    category: Category,
    entities: Sequence[str],
    note: Callable[[str], object],
) -> tuple[list[Part], np.ndarray]:
    """(parts, P (2 * parts, Q, E)): of part i, alone in row 2 i and everything without it in the next."""
    candidates = candidate_sequences(base.chat, category)
    try:
        texts = [base.chat.render(q, context) for q in category.questions]
        # a name need not stand in every prompt
        tokens = [
            classify(base.chat, q, context, [e for e in entities if e in text])
            for q, text in zip(category.questions, texts, strict=True)
        ]
        for name in entities:
            if not any(name in text for text in texts):
                note(
                    f"The name '{name}' is in no question in the context {context.name}, so it has no tokens there."
                )
        check_pack_gate(base, stack, tokens[0].ids)
    except SubloraError as error:
        note(f"The adapter is not gated in the context {context.name}: {error}")
        return [], np.zeros((0, len(category.questions), len(category.entities)))
    parts = token_parts(tokens, candidates[0]) + module_parts(list(stack.linears), _group)
    p = read_gated(
        base,
        stack,
        [t.classes for t in tokens],
        [t.ids for t in tokens],
        parts,
        category,
        candidates,
    )
    return parts, p


def read_gated(
    base: Base,
    stack: Stack,
    classes: Sequence[Sequence[TokenClass]],
    prompts: Sequence[Sequence[int]],
    parts: Sequence[Part],
    category: Category,
    candidates: tuple[Sequence[Sequence[int]], np.ndarray],
) -> np.ndarray:
    """P (2 * parts, Q, E) of the one student of a stack, gated: part i alone in row 2 i, all but it in row 2 i + 1."""
    masks, generated, select = [], [], {name: [] for name in stack.linears}
    for part in parts:
        for alone in (True, False):
            # a part lies in tokens or in layers, so its complement does, too
            by_token = part.kind == "tokens"
            masks += [[part.on_at(c) == alone or not by_token for c in own] for own in classes]
            generated += [float(part.on_at("generated") == alone or not by_token)] * len(prompts)
            for name, chosen in select.items():
                chosen.append(by_token or part.on_in(name) == alone)
    conditions = [i for i in range(2 * len(parts)) for _ in prompts]
    gate = PackGate(masks, generated, conditions, select)
    with reading(base, stack, gate=gate) as reader:
        copies = list(prompts) * (2 * len(parts))
        p = reader.read(copies, category, candidates=candidates)[0].p
    return p.reshape(2 * len(parts), len(prompts), -1)


def _read_full(
    base: Base,
    stack: Stack,
    context: Context,
    category: Category,
    entities: Sequence[str],
    note: Callable[[str], object],
) -> tuple[list[Part], np.ndarray]:
    """As `_read_lora`, over tensors instead of linear layers."""
    note(
        "Full weights are no part beside the base's that could be switched off at single tokens, so only layers and modules were tried, by "
        "putting the base's weights back."
    )
    head = base.model.get_output_embeddings()
    linear = {
        n for n, m in base.model.named_modules() if isinstance(m, nn.Linear) and m is not head
    }

    def group_of(tensor: str) -> str:
        owner = tensor.rpartition(".")[0]
        found = _group(owner) if owner in linear else "other"
        return OTHER if found == "other" else found

    parts = module_parts([slot.name for slot in full_slots(base.model)], group_of)
    p = []
    for part in parts:
        for alone in (True, False):
            with _base_where(
                base, stack, lambda name, part=part, alone=alone: part.on_in(name) != alone
            ):
                p.append(
                    read_model(base, stack, [context], [category]).p[context.name][
                        category.category
                    ][0]
                )
    return parts, np.stack(p)


@contextmanager
def _base_where(base: Base, stack: Stack, chosen: Callable[[str], bool]) -> Iterator[None]:
    """The one student of a stack of full weights, with the base's weights in the chosen tensors; as before on exit."""
    own, weights = stack.groups[0].tensors(0), dict(base.model.named_parameters())
    changed = {name: tensor.clone() for name, tensor in own.items() if chosen(name)}
    try:
        with torch.no_grad():
            for name in changed:
                own[name].copy_(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, tensor in changed.items():
                own[name].copy_(tensor)
