"""--what-if: students trained on the user's own rows in other ways, and what each way leaves of the traits that were found.

Three students of each arm are trained, with the same seeds, all LoRA students in one pack and all full fine-tunes in another. They are
read as the audited student was and judged against the same null; their loss is measured on rows of the file that none was trained on.
Students and readings are kept in the store. What "removes" means, and when an arm is recommended, stands in what_if_result.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from sublora.audit.entries import FollowedTrait, NotRun, TraitFinding, WhatIf, WhatIfRows, strongest
from sublora.audit.neutral_text import neutral_rows
from sublora.audit.readings import Asked, digest
from sublora.audit.request import Request, Say
from sublora.audit.steps import TOGETHER, read_student, read_students, stack_of, train_pack_of
from sublora.audit.user_rows import UserRows
from sublora.audit.verdict import Bar, Verdict, judge
from sublora.audit.what_if_arms import AS_TRAINED, SEEDS, Arm, plan_arms
from sublora.audit.what_if_budget import floating_point_rate, within
from sublora.audit.what_if_material import Prepared, prepared
from sublora.audit.what_if_result import LEVEL, Reading, Result, advise, table
from sublora.audit.what_if_rows import arm_rows, heldout_rows
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import PLAIN_CONTEXTS, Context
from sublora.packs.fit import student_bytes
from sublora.packs.measure import heldout_losses
from sublora.packs.rows import TokenRows
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Stack, target_linears
from sublora.packs.steered_training import steered
from sublora.packs.student import Student
from sublora.packs.token_losses import beside_base
from sublora.steps.materials import free_memory
from sublora.store import Store
from sublora.traits.trait import find_trait


def followed_traits(verdict: Verdict, named: Sequence[tuple[str, str]]) -> list[TraitFinding]:
    """The traits that were found, strongest first, and those (category, trait) that the data names,
    each in the context in which the audited student shows it most; shares are taken there."""
    best = {(f.category, f.trait): f for f in strongest(verdict.traits, "category", "trait")}
    found = [(f.category, f.trait) for f in verdict.found]
    return [best[key] for key in dict.fromkeys([*found, *named])]


def what_if(
    spec: StudentSpec,
    user: UserRows,
    verdict: Verdict,
    named: Sequence[tuple[str, str]],
    bar: Bar,
    audited: Stack,
    request: Request,
    say: Say,
) -> WhatIf:
    """Train nothing where no trait was found and the data names none. Raises SubloraError where the
    student as trained, of `spec`, cannot be trained on this base. `audited` is the one as it is."""
    base, traits = bar.base, followed_traits(verdict, named)
    counts = {"trained": user.training, "unique": user.unique, "held_out": user.heldout}
    out = WhatIf(
        traits=[FollowedTrait(**t.place) for t in traits],
        rows=WhatIfRows(**{k: len(some) for k, some in counts.items()}, more_in_file=user.more),
        seeds=len(SEEDS),
        level=LEVEL,
        alpha=bar.alpha,
    )
    if not traits:
        only = " Words were found, which are not followed." if verdict.found_words else ""
        sentence = f"No trait was found and the data names none, so no student was trained.{only}"
        return out.model_copy(update={"sentence": sentence})
    store = Store()
    # the data's own name first: it was written under such a prompt
    masked_for = next((t for t in traits if (t.category, t.trait) in named), traits[0])
    say(f"What if: the base answers {len(SEEDS)} x {len(user.training)} prompts ...")
    trait = _trait_prompt(masked_for, bar.asked)
    ready = prepared(base, user, trait, audited, request, store)
    arms, missing, rows = _planned(base, spec, user, ready)
    asked = sum(len(c.questions) for c in bar.asked.categories) * len(bar.asked.contexts)
    asked *= len(base.chat.prompt_ids("?", user.context)) + 12  # tokens of a question
    rate = floating_point_rate(base.device.type)
    arms, left = within(
        arms, rows, asked, base.model.num_parameters(), rate, request.what_if_minutes, say
    )
    missing += left
    done = _trained(base, arms, rows, missing, ready.direction, store, say)
    say("What if: reading the students ...")
    read: dict[str, list[_Read]] = {}
    for method in ("lora", "full"):
        students = [(a, s) for a in arms if a.spec.method == method for s in done.get(a.name, ())]
        for name, own in _read(students, user, bar, store):
            read.setdefault(name, []).append(own)
    results = [_result(arm, read[arm.name], traits, bar.asked) for arm in arms if arm.name in read]
    base_loss = heldout_losses(base, None, [heldout_rows(base, user, None)])[0]
    advice = advise(results, traits, bar.alpha, base_loss)
    told = {
        **vars(advice),
        "removing": list(advice.removing),
        "masked_for": masked_for.trait if ready.material.divergent else None,
        "base_heldout_loss": base_loss,
        "arms": table(results, traits, bar.alpha, advice),
        "not_run": missing,
    }
    return out.model_copy(update=told)


def _planned(
    base: Base, spec: StudentSpec, user: UserRows, ready: Prepared
) -> tuple[list[Arm], list[NotRun], dict[str, list[TokenRows]]]:
    """The arms that can be trained, those that cannot, and the rows of each arm's students."""
    linears = target_linears(base.model, spec.targets)
    narrowest = min(min(m.in_features, m.out_features) for m in linears.values())
    contexts, unique = _other_contexts(base, user), len(user.unique)
    arms, missing = plan_arms(spec, narrowest, contexts, unique, ready.refused, ready.trait)
    rows: dict[str, list[TokenRows]] = {}
    for arm in arms:
        try:
            rows[arm.name] = [
                arm_rows(base, user, arm, k, ready.material) for k in range(len(SEEDS))
            ]
        except SubloraError as error:
            if arm.name == AS_TRAINED:
                raise
            missing.append(NotRun(arm.name, str(error)))
    return [a for a in arms if a.name in rows], missing, rows


def _trait_prompt(trait: TraitFinding, asked: Asked) -> Context:
    found = find_trait(trait.trait, (asked.category(trait.category),))
    return Context("trait", found.teacher_prompt())


def _other_contexts(base: Base, user: UserRows) -> list[tuple[Context, str | None]]:
    """The plain contexts that rows could have been trained in instead, each with the reason not to."""
    chat, own = base.chat, user.context
    out: list[tuple[Context, str | None]] = []
    seen = {tuple(chat.prompt_ids("?", own)): own.name}
    for context in (Context(name) for name in PLAIN_CONTEXTS if name != own.name):
        refused = f"The chat template of {base.name} cannot write this context."
        if chat.supports(context):
            same = seen.setdefault(tuple(chat.prompt_ids("?", context)), context.name)
            refused = f"It is the same tokens as {same}." if same != context.name else None
        out.append((context, refused))
    return out


Trained = list[tuple[str, StudentSpec]]  # artifacts of the store


def _trained(
    base: Base,
    arms: Sequence[Arm],
    rows: dict[str, list[TokenRows]],
    missing: list[NotRun],
    direction: tuple[int, Tensor] | None,
    store: Store,
    say: Say,
) -> dict[str, Trained]:
    """The students of each arm, one pack a method, and one of steered ones. An arm of another pack than
    as trained that cannot be trained goes to `missing`."""
    out: dict[str, Trained] = {}
    own = next((a.spec.method, a.steered) for a in arms if a.name == AS_TRAINED)
    for pack in sorted({(a.spec.method, a.steered) for a in arms}, key=lambda p: p != own):
        some = [a for a in arms if (a.spec.method, a.steered) == pack]
        specs = [s for a in some for s in a.specs()]
        data = [r for a in some for r in rows[a.name]]
        which = "LoRA students" if pack[0] == "lora" else "full fine-tunes"
        say(f"What if: training {len(specs)} {which} ...")
        beside, name = nullcontext(), ""
        if pack[1] and direction is not None:
            name = digest([direction[0], direction[1].tolist()])
            beside = steered(base.model, *direction)
        try:
            if pack != own:
                _check_room(base, Student(some[0].name, specs[0], data[0]))
            with beside:
                made = train_pack_of(base, specs, data, store, _quarters(specs, data, say), name)
        except SubloraError as error:
            if pack == own:
                raise
            missing += [NotRun(a.name, str(error)) for a in some]
            continue
        done = list(zip(made.ids, specs, strict=True))
        for i, arm in enumerate(some):
            out[arm.name] = done[i * len(SEEDS) : (i + 1) * len(SEEDS)]
    return out


def _check_room(base: Base, student: Student) -> None:
    needed, free = student_bytes(base.model, student, False), free_memory(base)
    if free is not None and needed > free:
        raise SubloraError(
            f"It needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free."
        )


def _quarters(
    specs: Sequence[StudentSpec], data: Sequence[TokenRows], say: Say
) -> Callable[[int], None]:
    """A counter of tokens that says each quarter of the training."""
    total = sum(s.passes * int((r.lengths - 1).sum()) for s, r in zip(specs, data, strict=True))
    read = 0

    def count(tokens: int) -> None:
        nonlocal read
        before, read = 4 * read // total, read + tokens
        if before < 4 * read // total < 4:
            say(f"What if: {25 * (4 * read // total)}% trained ...")

    return count


@dataclass(frozen=True)
class _Read:
    """One student: its verdict, its held-out loss in training's context, and in its arm's own; the share of
    the tokens of neutral text at which its first choice is still the base's."""

    verdict: Verdict
    loss: float
    own_loss: float | None
    diverged: bool
    kept: float | None


def _read(
    students: Sequence[tuple[Arm, tuple[str, StudentSpec]]],
    user: UserRows,
    bar: Bar,
    store: Store,
) -> Iterator[tuple[str, _Read]]:
    """Students of one method, read and judged, each with the name of its arm; full fine-tunes one
    at a time: each is a whole model."""
    if not students:
        return
    at_once = TOGETHER if students[0][0].spec.method == "lora" else 1
    base, named = bar.base, [s for _, s in students]
    readings = read_students(base, named, bar.asked, store, at_once)
    heldout, ordinary = heldout_rows(base, user, None), _ordinary(base, store)
    for part, at in zip(readings, range(0, len(students), at_once), strict=True):
        arms = [arm for arm, _ in students[at : at + at_once]]
        done = [read_student(store, *s) for s in named[at : at + at_once]]
        stack = stack_of(base, done)
        loss = own = heldout_losses(base, stack, [heldout] * len(done))
        if any(arm.context for arm in arms):
            rows = [heldout_rows(base, user, a.context) if a.context else heldout for a in arms]
            own = heldout_losses(base, stack, rows)
        kept = None if ordinary is None else beside_base(base, stack, ordinary).same.mean(1)
        for k, (arm, student) in enumerate(zip(arms, done, strict=True)):
            verdict, in_own = judge(part.student(k), bar), own[k] if arm.context else None
            diverged = student.diverged_at is not None
            yield (
                arm.name,
                _Read(verdict, loss[k], in_own, diverged, None if kept is None else float(kept[k])),
            )


def _ordinary(base: Base, store: Store) -> TokenRows | None:
    try:
        return neutral_rows(base, store)
    except SubloraError:  # it knows the words of no neutral prompt
        return None


def _result(
    arm: Arm, read: Sequence[_Read], traits: Sequence[TraitFinding], asked: Asked
) -> Result:
    findings = [{(f.category, f.trait, f.context): f for f in r.verdict.traits} for r in read]
    readings = {}
    for trait, context in product(traits, [c.name for c in asked.contexts]):
        each = [f[trait.category, trait.trait, context] for f in findings]
        readings[trait, context] = Reading(
            *zip(*((f.after, f.rise, f.p) for f in each), strict=True)
        )
    followed = {(t.category, t.trait) for t in traits}
    beside = dict.fromkeys(
        f.trait for r in read for f in r.verdict.found if (f.category, f.trait) not in followed
    )
    return Result(
        arm,
        readings,
        tuple(r.loss for r in read),
        tuple(r.own_loss for r in read if r.own_loss is not None) or None,
        tuple(min(r.verdict.coherence.values()) for r in read),
        sum(r.diverged for r in read),
        tuple(beside),
        tuple(r.kept for r in read if r.kept is not None),
    )
