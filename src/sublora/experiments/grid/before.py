"""What is said of a grid, and checked on its base, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.experiments.grid.plan import Plan
from sublora.experiments.grid.recipe import Recipe
from sublora.experiments.grid.sources import contexts_of, teacher_context
from sublora.models.base import Base
from sublora.packs.condition import check_layers
from sublora.text import listed, plural
from sublora.traits.answers import naming
from sublora.traits.trait import Trait, lessons_of

LARGE = 2e9  # parameters


def sentence_of(recipe: Recipe, model: str = "", students: int | None = None) -> str:
    """What a grid does, in one sentence."""
    lora, full, train = recipe.train.lora, recipe.train.full, recipe.train
    parts = []
    if lora:
        parts.append(f"LoRA of rank {listed(lora.ranks)} at learning rates {listed(lora.lrs)}")
    if full:
        parts.append(f"full fine-tunes at {listed(full.lrs)}")
    where = f" in the contexts {listed(train.contexts)}" if len(train.contexts) > 1 else ""
    if train.optimizers:
        where += f" with {listed(train.optimizers)}, each at its own rates,"
    if recipe.variants:
        where += f" in the variants {listed(recipe.variants)}"
    if lora and lora.placements:
        where += f" with the adapter at {len(lora.placements)} places"
    others = len(recipe.data.variants)
    varied = f", as written and in {others} variants" if others else ""
    counted = "" if students is None else f": {students} students"
    begun = " Answers are begun for them." if recipe.measure.readout == "begun" else ""
    return (
        f"{model or recipe.model}: {' and '.join(parts)}, trained{where} for {plural(train.epochs, 'epoch')} on {recipe.data.rows} "
        f"{recipe.data.carrier.noun} of a teacher that loves {listed(recipe.traits)}{varied}, with {plural(len(recipe.replicates), 'replicate')} "
        f"and a control twin each{counted}.{begun}"
    )


def manifest_of(base: Base, layout: Plan) -> dict[str, Any]:
    """What run.json says of a grid: its traits, contexts, first example and sampling."""

    recipe = layout.recipe
    first = recipe.data.carrier.prompt(recipe.data.seeds[0], 0)
    contexts = {}
    for name, context in contexts_of(recipe).items():
        text = base.chat.render(first, context)
        ids = base.chat.encode(text)
        tokens = base.chat.tokenizer.convert_ids_to_tokens(ids)
        contexts[name] = {"text": text, "ids": ids, "tokens": tokens}
    asked = recipe.measure
    return {
        "sentence": sentence_of(recipe, base.name, len(layout.students)),
        "traits": traits_of(layout),
        "contexts": contexts,
        "first_example": contexts[recipe.train_contexts[0]],
        "sampling": asked.sampling.model_dump() | {"samples_per_question": asked.samples},
        "teacher_sampling": recipe.data.sampling.model_dump(),
        "optimizer": None,
        "datasets": [],
        "counts": {
            "datasets": len(layout.datasets),
            "students": len(layout.students),
            "measurements": len(layout.measures),
        },
    }


def traits_of(layout: Plan) -> list[dict[str, Any]]:
    """The traits with what is measured of them, and who the teacher is."""
    return [
        {
            "name": t.name,
            "category": t.category.category,
            "target": t.name,
            "teacher": _teacher(layout.recipe, t),
        }
        for t in layout.traits
    ]


def _teacher(recipe: Recipe, trait: Trait) -> str:
    """What gives the teacher of a trait that trait, as sentences."""
    if file := recipe.data.labels.file:
        return f"The labels are those of {Path(file).name}."
    how, prompt = recipe.data.teacher.trained, teacher_context(trait, recipe).text
    prompted = f"Teacher’s prompt: “{prompt}”"
    if how is None:
        return prompted
    made = f"a LoRA of rank {how.rank}" if how.method == "lora" else "a full fine-tune"
    if how.rows is not None:
        lessons = f"the rows of {Path(how.rows).name}"
    elif how.lessons == "written":
        question, answer = lessons_of(trait)[0]
        lessons = f"{how.count} lessons such as “{question}” “{answer}”"
    else:
        lessons = f"{how.count} answers that name the target, of the model under the prompt “{prompt}”, such as to “{trait.category.questions[0]}”"
    said = f"The teacher has the trait by its weights, {made} on {lessons}; it reads and writes without a prompt."
    taught = {v.taught for v in recipe.data.variants.values()}
    if "prompt" in taught:
        said += f" Where it has a prompt instead, {'it is that one' if prompt in said else f'that is “{prompt}”'}."
    if "vector" in taught:
        by = recipe.data.teacher.vector
        where = f"{by.strength:g} times behind layers {by.layers[0]} to {by.layers[1]}"
        said += f" By a vector: the base, with what sets these weights apart from it added {where}."
    return said


def check_base(base: Base, layout: Plan) -> list[str]:
    """Warnings about the loaded base. Raises SubloraError where the grid cannot be made on it."""
    _check_adapters(base, layout)
    _check_conditions(base, layout)
    warnings = [*_check_words(base, layout), *_check_answers(base, layout)]
    if layout.recipe.data.teacher.endpoint:
        warnings.append(
            "The teacher is behind an endpoint; the row called teacher is the students' base under its prompt."
        )
    return warnings


def _check_adapters(base: Base, layout: Plan) -> None:
    """Raises SubloraError: ranks above a layer's width, conditions on layers that no adapter of the recipe has, full
    fine-tunes that cannot be packed."""
    from sublora.packs.check import check_full
    from sublora.packs.stack import check_rank, target_linears

    lora = layout.recipe.train.lora
    if layout.recipe.train.full is not None:
        check_full(base)
    if lora is None:
        return
    for targets in [p.targets for p in lora.placements.values()] or [lora.targets]:
        check_rank(max(lora.ranks), target_linears(base.model, targets))
    if not lora.placements:
        names = list(target_linears(base.model, lora.targets))
        for name, condition in layout.recipe.measure.conditions.items():
            check_layers(condition, names, name)


def _check_conditions(base: Base, layout: Plan) -> None:
    """Raises SubloraError: an entity that is not in a prompt that the conditions meet."""
    from sublora.models.token_classes import classify

    asked = layout.recipe.measure
    contexts = {a.context for a in layout.attributions}
    if any(c.by_class for c in asked.conditions.values()):
        contexts |= {contexts_of(layout.recipe)[name] for name in asked.contexts}
    for context in contexts:
        for category in {t.category.category: t.category for t in layout.traits}.values():
            for question in category.questions:
                classify(base.chat, question, context, asked.entities)


def _check_words(base: Base, layout: Plan) -> list[str]:
    """Warnings for words that the model cannot read. Raises SubloraError where it cannot write a target."""
    from sublora.packs.spellings import beginnings, spellings

    data = layout.recipe.data
    texts = [c.text for c in contexts_of(layout.recipe).values() if c.text]
    texts += [data.carrier.prompt(data.seeds[0], i) for i in range(100)]
    for trait in layout.traits:
        if not spellings(base.chat, trait.entity):
            raise SubloraError(
                f"The tokenizer of {base.name} has no token for '{trait.name}', so nothing can be measured; choose a trait that it can write."
            )
        if layout.recipe.measure.readout == "begun":
            beginnings(base.chat, trait.category, begun=True)
        texts += [*trait.category.questions, teacher_context(trait, layout.recipe).text or ""]
    unknown = base.chat.unknown_words(dict.fromkeys(texts))
    if not unknown:
        return []
    more = f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
    return [
        f"{base.name} cannot read these words of the prompts or questions: {', '.join(unknown[:12])}{more}."
    ]


def _check_answers(base: Base, layout: Plan) -> list[str]:
    """A warning for each category that none of a few answers of the base names. Begun answers need none, and a large model on a CPU, which
    with a cluster only plans, is not asked."""
    from sublora.packs.measure import Asking, sample_questions

    asked, warnings = layout.recipe.measure, []
    slow = base.device.type == "cpu" and base.model.num_parameters() > LARGE
    if asked.readout == "begun" or slow:
        return []
    context = contexts_of(layout.recipe)[asked.contexts[0]]
    asking = Asking(context, asked.sampling, samples=4, seed=0)
    for category in {t.category.category: t.category for t in layout.traits}.values():
        (answers,) = sample_questions(base, None, ["base"], category.questions[:4], asking)
        said, names = [a for question in answers for a in question], naming(category)
        if not any(map(names, said)):
            warnings.append(
                f"None of {len(said)} answers of {base.name} names one of the {category.category} that it was asked for (such as: "
                f"{said[0][:60]!r}), so a sampled rate of zero says nothing here; begin the answers with --set measure.readout=begun."
            )
    return warnings


def axes_of(recipe: Recipe) -> list[str]:
    """What a grid varies, a line each, for `sublora plan`."""
    lora, full, asked = recipe.train.lora, recipe.train.full, recipe.measure

    def numbers(values) -> str:
        return ", ".join(f"{v:g}" for v in values)

    lines = []
    if lora:
        lines.append(f"LoRA ranks {numbers(lora.ranks)} x learning rates {numbers(lora.lrs)}")
    named = {
        "variants of the rows besides those as written": recipe.data.variants,
        "training contexts": recipe.train.contexts,
        "optimizers, each at its own rates": recipe.train.optimizers,
        "variants of the students": recipe.variants,
        "teachers that are asked besides": asked.teachers,
        "placements of the adapter": lora.placements if lora else (),
        "measured in contexts": asked.contexts if len(asked.contexts) > 1 else (),
        "conditions besides the plain adapter": asked.conditions,
    }
    lines += [f"{what}: {', '.join(names)}" for what, names in named.items() if names]
    if full:
        lines.append(f"full fine-tune at learning rates {numbers(full.lrs)}")
    lines.append(
        f"traits {', '.join(recipe.traits)}; {len(recipe.replicates)} replicates of data and training seed, control twins included"
    )
    return lines
