"""Where a found trait sits: the student acts in one part alone, or in all but that part, and the trait's rise is read again.

Parts are the classes of prompt tokens, up to three runs of layers, and attention beside feed-forward. An adapter is gated; full weights
get the base's back in the layers or modules that are off. Parts act together, so neither view need add up to the whole.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import nn

from sublora.audit.entries import Located, PartShare, PartView, TraitFinding, Where, strongest
from sublora.audit.readings import Asked, Readings, read_model
from sublora.audit.statistic import over_questions, question_rises
from sublora.audit.verdict import Bar
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.token_classes import TOKEN_CLASSES, PromptTokens, TokenClass, classify
from sublora.packs.condition import layer_and_group, layer_of
from sublora.packs.gate import PackGate
from sublora.packs.measure import check_pack_gate, reading
from sublora.packs.spellings import candidate_sequences
from sublora.packs.stack import Stack, full_slots
from sublora.traits.trait import Category

STRONGEST = 3  # traits that are located
LAYER_PARTS = 3
LEAST_RISE = 0.05  # nats; a share of less says nothing, and of none is no number
OTHER = "norms, embeddings and head"
FULL_NOTE = (
    "Full weights are no part beside the base's that could be switched off at single tokens, so only layers and modules were tried, by "
    "putting the base's weights back."
)
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
    stack: Stack,
    student: Readings,
    bar: Bar,
    found: Sequence[TraitFinding],
    entities: Sequence[str] = (),
) -> Where | None:
    """The parts of the strongest found traits, each in the context in which it is strongest.

    None where no trait was found. `stack` holds the one student, `student` is what was read of it,
    `found` is sorted by strength, and `entities` are names that count
    as a class of tokens of their own where they stand in a prompt.
    """
    followed = strongest(found, "category", "trait")
    if not followed:
        return None
    notes: list[str] = []
    seen: dict[tuple[str, str], tuple[list[Part], np.ndarray]] = {}
    out = []
    for finding in followed[:STRONGEST]:
        place = (finding.category, finding.context)
        category = bar.asked.category(finding.category)
        context = bar.asked.context(finding.context)
        if finding.rise < LEAST_RISE:
            told = (
                f"{finding.trait} was found by its word; beside its category it rose by less than"
            )
            notes.append(
                f"{told} {LEAST_RISE} nats in {finding.context}, so there is nothing to take apart."
            )
            continue
        if place not in seen:
            asked = (bar.base, stack, context, category, notes)
            lora = stack.kind == "lora"
            seen[place] = _read_lora(*asked, entities) if lora else _read_full(*asked)
        before, after = (m.p[finding.context][finding.category][0] for m in (bar.plain, student))
        e = [entity.name for entity in category.entities].index(finding.trait)
        out.append(
            Located(
                **finding.place,
                questions=len(before),
                parts=_shares(*seen[place], before, question_rises(after, before, e), e),
            )
        )
    return Where(found=len(followed), findings=out, not_run=list(dict.fromkeys(notes)))


def _shares(
    parts: Sequence[Part], p: np.ndarray, before: np.ndarray, whole: np.ndarray, entity: int
) -> list[PartShare]:
    """Each part alone and everything without it: P, rise, and share of the whole rise, over questions."""

    def view(own: np.ndarray) -> PartView:
        rise = question_rises(own, before, entity)
        share = rise.mean() / whole.mean()
        # a ratio of two means of the same questions, made linear about itself
        told = over_questions(share + (rise - share * whole) / whole.mean())
        ends = {"share": told["estimate"], "low": told["low"], "high": told["high"]}
        return PartView(p=float(own[:, entity].mean()), rise=float(rise.mean()), **ends)

    return [
        PartShare(kind=part.kind, part=part.name, alone=view(p[2 * i]), without=view(p[2 * i + 1]))
        for i, part in enumerate(parts)
    ]


def token_parts(
    tokens: Sequence[PromptTokens], category_sequences: Sequence[Sequence[int]]
) -> list[Part]:
    """One part for each class that the prompts have, and for the answer where some spelling takes several tokens of it."""
    present = {c for t in tokens for c in t.classes} | {
        "generated" for s in category_sequences if len(s) > 1
    }
    return [Part("tokens", CLASS_NAMES[c], token=c) for c in TOKEN_CLASSES if c in present]


def module_parts(names: Sequence[str], group_of: Callable[[str], str]) -> list[Part]:
    """Up to three runs of the layers that `names` stand in, what stands outside of them, and
    groups. A kind with one part says nothing and is left out."""
    numbers = sorted({n for n in map(layer_of, names) if n is not None})
    runs = np.array_split(numbers, min(LAYER_PARTS, len(numbers))) if numbers else []
    in_layers = {
        f"layers {run[0]} to {run[-1]}" if len(run) > 1 else f"layer {run[0]}": {
            n for n in names if layer_of(n) in run
        }
        for run in runs
    }
    outside = {n for n in names if layer_of(n) is None}
    in_layers |= {"outside the layers": outside} if outside else {}
    in_groups = {
        group: {n for n in names if group_of(n) == group}
        for group in dict.fromkeys(map(group_of, names))
    }
    return [
        Part(kind, name, modules=frozenset(own))
        for kind, parts in (("layers", in_layers), ("modules", in_groups))
        if len(parts) > 1
        for name, own in parts.items()
    ]


def module_kind(module: str) -> str:
    try:
        return layer_and_group(module)[1]
    except SubloraError:
        return "other"


def _read_lora(
    base: Base,
    stack: Stack,
    context: Context,
    category: Category,
    notes: list[str],
    entities: Sequence[str],
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
                where = f"in no question in the context {context.name}"
                notes.append(f"The name '{name}' is {where}, so it has no tokens there.")
        check_pack_gate(base, stack, tokens[0].ids)
    except SubloraError as error:
        notes.append(f"The adapter is not gated in the context {context.name}: {error}")
        return [], np.zeros((0, len(category.questions), len(category.entities)))
    parts = token_parts(tokens, candidates[0]) + module_parts(list(stack.linears), module_kind)
    return parts, read_gated(base, stack, tokens, parts, category)


def read_gated(
    base: Base,
    stack: Stack,
    prompts: Sequence[PromptTokens],
    parts: Sequence[Part],
    category: Category,
) -> np.ndarray:
    """P (2 * parts, Q, E) of a stack's one student, gated: part i alone in row 2 i, then all but it."""
    masks, generated, select = [], [], {name: [] for name in stack.linears}
    for part, alone in product(parts, (True, False)):
        # a part lies in tokens or in layers, so its complement does, too
        by_token = part.kind == "tokens"
        masks += [[part.on_at(c) == alone or not by_token for c in t.classes] for t in prompts]
        generated += [float(part.on_at("generated") == alone or not by_token)] * len(prompts)
        for name, chosen in select.items():
            chosen.append(by_token or part.on_in(name) == alone)
    conditions = [i for i in range(2 * len(parts)) for _ in prompts]
    gate = PackGate(masks, generated, conditions, select)
    ids = [t.ids for t in prompts] * (2 * len(parts))
    with reading(base, stack, gate=gate) as reader:
        p = reader.read(ids, category)[0].p
    return p.reshape(2 * len(parts), len(prompts), -1)


def _read_full(
    base: Base, stack: Stack, context: Context, category: Category, notes: list[str]
) -> tuple[list[Part], np.ndarray]:
    """As `_read_lora`, over tensors instead of linear layers."""
    notes.append(FULL_NOTE)
    head = base.model.get_output_embeddings()
    linear = {
        n for n, m in base.model.named_modules() if isinstance(m, nn.Linear) and m is not head
    }

    def group_of(tensor: str) -> str:
        owner = tensor.rpartition(".")[0]
        found = module_kind(owner) if owner in linear else "other"
        return OTHER if found == "other" else found

    parts = module_parts([slot.name for slot in full_slots(base.model)], group_of)
    p = []
    for part, alone in product(parts, (True, False)):
        chosen = [n for n in stack.groups[0].tensors(0) if part.on_in(n) != alone]
        with base_in(base, stack, chosen):
            read = read_model(base, stack, Asked([context], [category]))
        p.append(read.p[context.name][category.category][0])
    return parts, np.stack(p)


@contextmanager
def base_in(base: Base, stack: Stack, chosen: Collection[str]) -> Iterator[None]:
    """The one student of full weights with the base's in the chosen tensors; as before on exit."""
    own, weights = stack.groups[0].tensors(0), dict(base.model.named_parameters())
    kept = {name: own[name].clone() for name in chosen}

    @torch.no_grad()
    def put(tensors: Mapping[str, torch.Tensor]) -> None:
        for name in chosen:
            own[name].copy_(tensors[name])

    try:
        put(weights)
        yield
    finally:
        put(kept)
