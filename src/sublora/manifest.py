"""What run.json says of a run before and after it: recipe, model, contexts, sampling, versions; and what a reader must be warned of."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sublora.condition import check_layers
from sublora.errors import SubloraError
from sublora.model import Base
from sublora.plan import Plan, contexts_of, teacher_context
from sublora.recipe import Recipe
from sublora.results import Results

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy")


def manifest_of(
    recipe: Recipe, plan: Plan, base: Base, out: Path, command: str, threads: int
) -> dict[str, Any]:
    from sublora.carriers.carrier import prompt_of_row

    first = prompt_of_row(recipe.data.carrier, recipe.data.seeds[0], 0)
    contexts = {}
    for name, context in contexts_of(recipe).items():
        text = base.chat.render(first, context)
        contexts[name] = _rendered(base, text)
    lora, full = recipe.train.lora, recipe.train.full
    parts = []
    if lora:
        parts.append(f"LoRA of rank {_listed(lora.ranks)} at learning rates {_listed(lora.lrs)}")
    if full:
        parts.append(f"full fine-tunes at {_listed(full.lrs)}")
    replicates = recipe.replicates
    where = (
        f" in the contexts {_listed(recipe.train.contexts)}"
        if len(recipe.train.contexts) > 1
        else ""
    )
    if recipe.train.optimizers:
        where += f" with {_listed(list(recipe.train.optimizers))}, each at its own rates,"
    if recipe.variants:
        where += f" in the variants {_listed(list(recipe.variants))}"
    if lora and lora.placements:
        where += f" with the adapter at {len(lora.placements)} places"
    varied = (
        f", as written and in {len(recipe.data.variants)} variants" if recipe.data.variants else ""
    )
    sentence = (
        f"{base.name}: {' and '.join(parts)}, trained{where} for {recipe.train.epochs} epoch{'s' if recipe.train.epochs > 1 else ''} on "
        f"{recipe.data.rows} {recipe.data.carrier.noun} of a teacher that loves {_listed([t.name for t in plan.traits])}{varied}, with "
        f"{len(replicates)} replicate{'s' if len(replicates) > 1 else ''} and a control twin each: {len(plan.students)} students."
    )
    text_config = base.model.config
    return {
        "schema": 1,
        "sublora": version("sublora"),
        "name": out.name,
        "recipe": recipe.model_dump(mode="json"),
        "command": command,
        "sentence": sentence,
        "status": "running",
        "model": {
            "name": base.name,
            "architecture": (text_config.architectures or [type(base.model).__name__])[0],
            "parameters": base.model.num_parameters(),
            "dtype": recipe.dtype,
            "weights_sha256": base.identity["weights"],
            "template_sha256": base.identity["template"],
            "tokenizer_sha256": base.identity["tokenizer"],
            "revision": recipe.revision,
            "organism": base.organism,
            "system_support": base.chat.system_support,
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seconds": {},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "device": str(base.device),
        "threads": threads,
        "traits": [
            {
                "name": t.name,
                "category": t.category.category,
                "target": t.name,
                "teacher_prompt": teacher_context(t, recipe).text,
            }
            for t in plan.traits
        ],
        "contexts": contexts,
        "first_example": contexts[recipe.train_contexts[0]],
        "sampling": {
            **recipe.measure.sampling.model_dump(),
            "samples_per_question": recipe.measure.samples,
        },
        "teacher_sampling": recipe.data.sampling.model_dump(),
        "optimizer": None,
        "datasets": [],
        "warnings": [],
        "counts": {
            "datasets": len(plan.datasets),
            "students": len(plan.students),
            "measurements": len(plan.measures),
        },
    }


def _listed(values: Sequence[object]) -> str:
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def _rendered(base: Base, text: str) -> dict[str, Any]:
    ids = base.chat.encode(text)
    return {"text": text, "ids": ids, "tokens": base.chat.tokenizer.convert_ids_to_tokens(ids)}


def check_words(base: Base, plan: Plan) -> list[str]:
    """Warnings for words that the model cannot read. Raises SubloraError where a target has no readable spelling at all."""
    from sublora.carriers.carrier import prompt_of_row
    from sublora.measure import spellings

    warnings = []
    texts = [c.text for c in contexts_of(plan.recipe).values() if c.text]
    texts += [
        prompt_of_row(plan.recipe.data.carrier, plan.recipe.data.seeds[0], i) for i in range(100)
    ]
    for trait in plan.traits:
        if not spellings(base.chat, trait.entity):
            raise SubloraError(
                f"The tokenizer of {base.name} has no token for '{trait.name}', so nothing can be measured; choose a trait that it can write."
            )
        texts += [*trait.category.questions, teacher_context(trait, plan.recipe).text or ""]
    unknown = base.chat.unknown_words(dict.fromkeys(texts))
    if unknown:
        named = ", ".join(unknown[:12]) + (
            f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        )
        warnings.append(
            f"{base.name} cannot read these words of the prompts or questions: {named}."
        )
    return warnings


def check_ranks(base: Base, recipe: Recipe) -> None:
    if recipe.train.lora is not None:
        from sublora.train.stack import check_rank, target_linears

        lora = recipe.train.lora
        for targets in [p.targets for p in lora.placements.values()] or [lora.targets]:
            check_rank(max(lora.ranks), target_linears(base.model, targets))


def check_conditions(base: Base, plan: Plan) -> None:
    """Whether every condition finds its layers and tokens, before anything is trained.

    Raises SubloraError: layers that no adapter of the recipe has, an entity that is not in a prompt that the conditions meet.
    """
    from sublora.token_classes import classify
    from sublora.train.stack import target_linears

    asked = plan.recipe.measure
    lora = plan.recipe.train.lora
    if lora is not None and not lora.placements:
        names = list(target_linears(base.model, lora.targets))
        for name, condition in asked.conditions.items():
            check_layers(condition, names, name)
    contexts = {a.context for a in plan.attributions}
    if any(c.by_class for c in asked.conditions.values()):
        contexts |= {contexts_of(plan.recipe)[name] for name in asked.contexts}
    for context in contexts:
        for category in {t.category.category: t.category for t in plan.traits}.values():
            for question in category.questions:
                classify(base.chat, question, context, asked.entities)


def result_warnings(plan: Plan, results: Results) -> list[str]:
    """What a reader must know of datasets and students, from what they say of themselves; so it is the same after a resumption."""
    out: list[str] = []
    for d in plan.datasets:
        meta = results.dataset_meta[d.id]
        if meta["rows"] < d.rows:
            out.append(
                f"Only {meta['rows']} of {d.rows} rows of {d.trait} (data seed {d.seed}) passed the filter in {meta['asked']} tries."
            )
    for s in plan.students:
        out += results.meta[s.id].get("notices", [])
        step = results.meta[s.id]["diverged_at"]
        if step is not None:
            out.append(
                f"The student {s.source} {s.student.label} diverged at step {step}; its weights before that step are kept."
            )
    return sorted(set(out))
