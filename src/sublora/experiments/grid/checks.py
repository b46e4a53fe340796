"""Whether the sections of a grid fit each other, before anything is made."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from sublora.analysis.tables import AS_WRITTEN, PLAIN_CONDITION
from sublora.errors import plain
from sublora.experiments.grid.axes import cells_of, student_spec
from sublora.experiments.schema import AskedTeacher, misfit
from sublora.packs.spec import FOR_ADAPTERS
from sublora.steps.reading import readings

WRITTEN = ("sampled", "teacher")  # labels and source of rows as the teacher writes them
Misfits = Iterator[tuple[str, str]]  # (the key at fault, what is wrong with it and how to fix it)


def check(recipe) -> None:
    """Raises the first misfit."""
    parts = (_lists, _data, _conditions, _optimizers, _steering, _variants, _axes)
    for where, what in chain.from_iterable(part(recipe) for part in parts):
        raise misfit(where, what)


def _no_name(name: str, taken: str = PLAIN_CONDITION) -> bool:
    return not name.strip() or name == taken


def _lists(recipe) -> Misfits:
    train = recipe.train
    lora, full = train.lora, train.full
    if lora is None and full is None:
        yield "train", "needs 'lora', 'full' or both"
    lists: dict[str, tuple[Any, ...]] = {
        "traits": tuple(t.lower() for t in recipe.traits),
        "data.seeds": recipe.data.seeds,
        "train.seeds": train.seeds,
        "measure.contexts": recipe.measure.contexts,
        "train.contexts": train.contexts,
        "train.lora.ranks": lora.ranks if lora else (),
        "train.lora.lrs": lora.lrs if lora else (),
        "train.full.lrs": full.lrs if full else (),
    }
    for where, values in lists.items():
        twice = [value for value in values if values.count(value) > 1]
        yield from ((where, f"{value} stands twice, keep one") for value in twice)
    if train.pairing == "paired" and len(recipe.data.seeds) != len(train.seeds):
        fix = "paired seeds need as many train.seeds as data.seeds, or set train.pairing to crossed"
        yield "train.seeds", fix
    if set(recipe.added_lrs) - set(lora.lrs if lora else ()):
        yield "added_lrs", "name rates that are not among train.lora.lrs; leave them out"
    if recipe.fixed_lr is not None and (lora is None or recipe.fixed_lr not in lora.lrs):
        fix = "is not among train.lora.lrs, set it to one of them or to null"
        yield "fixed_lr", f"{recipe.fixed_lr:g} {fix}"


def _data(recipe) -> Misfits:
    data = recipe.data
    trained, endpoint = data.teacher.trained, data.teacher.endpoint
    neutral = data.control == "neutral"
    if trained is not None and trained.rows is not None and not neutral:
        fix = "a teacher trained on your rows has no twin with another trait, set it to neutral"
        yield "data.control", fix
    if trained is not None and endpoint is not None:
        yield "data.teacher.endpoint", "stands beside data.teacher.trained, keep one of them"
    told = {"data": data, **{f"data.variants.{n}": v for n, v in data.variants.items()}}
    for where, rows in told.items():
        labels, source = rows.labels or data.labels, rows.source or data.source
        if labels.kind == "replaced" and source == "random":
            yield (
                f"{where}.labels",
                "keeps the text's own tokens, which chance wrote, set data.source to teacher, base or a file",
            )
        if labels.file is not None:
            yield from _given(recipe, f"{where}.labels.file", labels.file, source)
        if endpoint is not None and (source != "teacher" or labels.kind != "sampled"):
            yield (
                f"{where}.labels",
                "the teacher is behind an endpoint, whose rows are its own text",
            )
        if getattr(rows, "taught", None) == "weights" and trained is None:
            yield f"{where}.taught", "asks for weights, say how under data.teacher.trained"
        if getattr(rows, "taught", None) == "vector" and data.teacher.vector is None:
            yield f"{where}.taught", "asks for a vector, say how under data.teacher.vector"
    if "reverse" in recipe.train.vary.get("kl", ()) and data.labels.kind != "soft":
        yield "train.vary.kl", "is the direction of soft labels, set data.labels.kind to soft"
    for name, variant in data.variants.items():
        where = f"data.variants.{name}"
        if endpoint is not None and (variant.model or variant.shared_draws):
            yield where, "the teacher is behind an endpoint, drop model and shared_draws"
        changed = variant.transform or variant.shared_draws or variant.sampling
        if changed and not variant.labels and (data.labels.kind, data.source) != WRITTEN:
            yield (
                where,
                "changes the text that a teacher writes, and data.labels or data.source ask for more than that, give it a run of its own",
            )
        if _no_name(name, AS_WRITTEN):
            yield where, f"'{name}' is no name for a variant, choose another one"
        if variant.transform is not None and data.carrier.kind != "numbers":
            yield where, "transforms numbers, set data.carrier.kind to numbers or drop it"
        if variant.teacher and neutral:
            what = "neutral rows are the control's already"
            if variant.teacher == "other-trait":
                what = "a third trait stands beside a control with another one"
            yield where, f"{what}, drop it or set data.control to other-trait"


def _given(recipe, where: str, file: str, source: str) -> Misfits:
    """Labels of a file."""
    if not source.endswith(".jsonl"):
        yield where, "has labels of the rows of a file, set data.source to it"
    several = len(recipe.traits) > 1 or recipe.data.control == "other-trait"
    if several and "{name}" not in file:
        yield (
            where,
            "would give all teachers the same labels, write {name} in it, or test one trait with data.control neutral",
        )


def _conditions(recipe) -> Misfits:
    measure, lora = recipe.measure, recipe.train.lora
    for_adapters = [key for key in measure.asked if readings()[key].for_adapters]
    if recipe.train.full is not None and (measure.conditions or for_adapters):
        what = " and ".join([*(["the conditions"] if measure.conditions else []), *for_adapters])
        yield "train.full", f"a full fine-tune has no adapter to gate, drop train.full or {what}"
    for name, condition in measure.conditions.items():
        where = f"measure.conditions.{name}"
        if _no_name(name):
            yield where, f"'{name}' is no name for a condition, choose another one"
        classes = (condition.on or ()) + (condition.off or ())
        if "entity" in classes and not measure.entities:
            yield where, "asks for the class entity, name one in measure.entities"
        if condition.svd and lora and condition.svd.k >= min(lora.ranks):
            fix = f"set svd.k below the lowest rank {min(lora.ranks)}"
            yield where, f"cuts at {condition.svd.k}, {fix}"
    if lora and lora.placements and lora.targets != ("all-linear",):
        yield "train.lora.placements", "stands beside train.lora.targets, keep one of them"


def _optimizers(recipe) -> Misfits:
    train, lora = recipe.train, recipe.train.lora
    if train.optimizer == "frozen-adam-scale":
        fix = "frozen-adam-scale needs a scout_lr, name it under train.optimizers"
        yield "train.optimizer", fix
    if train.full is not None and train.optimizer in FOR_ADAPTERS:
        fix = f"{train.optimizer} is for adapters, drop train.full or choose another"
        yield "train.optimizer", fix
    if not train.optimizers:
        if train.match_lr is not None:
            yield "train.match_lr", "stands without train.optimizers, drop it or name some"
        return
    if lora is None or train.full is not None:
        yield "train.optimizers", "compares LoRA students, give train.lora and no train.full"
    if train.contexts or lora.placements or recipe.measure.conditions or recipe.measure.attribution:
        yield (
            "train.optimizers",
            "stands beside another axis, give training contexts, placements and conditions a run of their own",
        )
    context = recipe.train_contexts[0]
    if context not in recipe.measure.contexts:
        yield "measure.contexts", f"lacks {context}, where held-out loss is measured, add it"
    name, first = next(iter(train.optimizers.items()))
    if train.match_lr not in (first.lrs or lora.lrs):
        fix = f"is not among the rates of the first optimizer {name}, set it to one of them"
        yield "train.match_lr", fix


def _steering(recipe) -> Misfits:
    measure = recipe.measure
    steered = {n: c.steer for n, c in measure.conditions.items() if c.steer}
    for name, steer in steered.items():
        where = f"measure.conditions.{name}"
        if steer.first and steer.first > recipe.vectors.directions:
            fix = "set vectors.directions to that many at least"
            yield where, f"takes {steer.first} directions, {fix}"
        if len(recipe.traits) > 1:
            fix = "steers every student by vectors of one trait, give one trait a run"
            yield "traits", f"{where} {fix}"
    for name in (*recipe.variants, *measure.teachers):
        if _no_name(name):
            yield "variants", f"'{name}' is no name for a variant, choose another one"
    for name in sorted(set(recipe.variants) & set(measure.teachers)):
        yield "measure.teachers", f"'{name}' is the name of a variant too, choose another one"
    data, plain = recipe.data, AskedTeacher()
    taught = [n for n, v in recipe.variants.items() if v.teacher != plain or v.mask]
    other = data.variants or data.teacher.endpoint
    if other and (steered or recipe.vectors.students):
        yield (
            "measure",
            "vectors are of one teacher and its students here, give variants of the rows and an endpoint a run of their own",
        )
    other = other or data.teacher.trained or data.source != "teacher"
    reads = (taught, measure.teachers, measure.probe, measure.gradients)
    if (other or data.labels.kind != "sampled") and any(map(bool, reads)):
        yield (
            f"variants.{taught[0]}" if taught else "measure",
            "masks, probes, gradients and teachers that are steered are for rows as the prompted teacher writes them, give others a run of "
            "their own",
        )
    if recipe.variants and recipe.train.optimizers:
        yield "variants", "stands beside train.optimizers, give each a run of its own"
    if measure.gradients is not None and max(measure.gradients.rows) > recipe.data.rows:
        fix = f"goes beyond data.rows {recipe.data.rows}, ask for that many at most"
        yield "measure.gradients.rows", fix


def _variants(recipe) -> Misfits:
    rows = recipe.data.rows
    against = [v.mask.against for v in recipe.variants.values() if v.mask]
    against += [recipe.measure.probe.against] if recipe.measure.probe else []
    labels = [recipe.data.labels, *(v.labels for v in recipe.data.variants.values())]
    against += [one.against for one in labels if one and one.kind == "replaced"]
    if "other-trait" in against and recipe.data.control == "neutral":
        fix = "is neutral, so there is no other trait to diverge from, compare with plain"
        yield "data.control", fix
    for name, variant in recipe.variants.items():
        where = f"variants.{name}"
        if variant.rows is not None and variant.rows > rows:
            yield f"{where}.rows", f"is above data.rows {rows}, set it to that at most"
        alike = next(n for n, v in recipe.variants.items() if v == variant)
        if alike != name:
            yield where, f"says what '{alike}' says, drop one of them"
        yield from _chained(recipe, name) if variant.after else ()
        steps = recipe.steps_of(variant)
        if variant.step is not None and variant.step >= steps:
            fix = f"is not before the last of {steps} steps, leave it out or lower it"
            yield f"{where}.step", fix


def _chained(recipe, name: str) -> Misfits:
    """A variant whose teachers are students."""
    variant, where, names = recipe.variants[name], f"variants.{name}.after", list(recipe.variants)
    if variant.after not in names[: names.index(name)]:
        yield (
            where,
            f"names '{variant.after}', which is no variant before this one, name one of these",
        )
    if variant.teacher != AskedTeacher() or variant.mask:
        yield where, "stands beside a teacher or a mask of its own, keep one of them"
    if len({tuple(v for k, v in c.labels.items() if k != "variant") for c in cells_of(recipe)}) > 1:
        yield (
            where,
            "needs one rank, one rate and no other axis, so that one student teaches the next",
        )


def _axes(recipe) -> Misfits:
    """Every student's training has to be possible."""
    for cell in cells_of(recipe):
        try:
            student_spec(recipe, cell)
        except ValueError as error:
            first = error.errors()[0]
            yield "train", " ".join([*map(str, first["loc"]), plain(first)])
