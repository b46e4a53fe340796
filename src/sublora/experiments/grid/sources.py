"""Whose rows there are: of teachers with a trait, of their controls, and of others that stand for them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from sublora.carriers.transform import needs_reference
from sublora.errors import SubloraError
from sublora.experiments.experiment import Experiment
from sublora.experiments.schema import DataSpec, RowsVariant
from sublora.models.chat import Context, resolve_context
from sublora.seeds import generator
from sublora.traits.trait import Trait, find_trait, load_categories, teacher_text

CONTROL, NEUTRAL, THIRD = "control", "neutral", "third"
PLACES = ("{name}", "{plural}", "{Plural}")


class WritesRows(Experiment):
    """What datasets need of a recipe. `judged`: whether a judge says what shows the trait."""

    judged: ClassVar[bool] = False
    model: str = "micro"
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    traits: tuple[str, ...] = Field(min_length=1)
    trait_files: tuple[str, ...] = ()
    data: DataSpec

    @property
    def out_words(self) -> list[str]:
        more = ["and-more"] if len(self.traits) > 3 else []
        return [self.model.rstrip("/").split("/")[-1], *(t.lower() for t in self.traits[:3]), *more]

    @property
    def controlled(self) -> bool:
        """Whether students of neutral rows and an arm that must transfer stand in the run."""
        return False

    @property
    def seeds(self) -> list[int]:
        """The data seeds, each once."""
        return list(dict.fromkeys(self.data.seeds))


@dataclass(frozen=True)
class Author:
    """Who writes: the label of the rows, the teacher's prompt, and its trait."""

    label: str
    prompt: Context
    trait: Trait | None = None


def traits_of(recipe: WritesRows) -> tuple[Trait, ...]:
    categories = load_categories(tuple(map(Path, recipe.trait_files)))
    return tuple(find_trait(name, categories) for name in recipe.traits)


def contexts_of(recipe) -> dict[str, Context]:
    """The contexts of a grid by their names."""
    names = (*recipe.train_contexts, *recipe.measure.contexts, recipe.vectors.plain)
    return {name: resolve_context(name, recipe.contexts) for name in dict.fromkeys(names)}


def teacher_context(trait: Trait, recipe: WritesRows) -> Context:
    """The system prompt that gives the teacher the trait."""
    own, name = recipe.data.teacher.prompt, f"teacher:{trait.name}"
    if own is None:
        return Context(name, trait.teacher_prompt(recipe.data.teacher.wording))
    if not any(place in own for place in PLACES):
        alone = len(recipe.traits) == 1 and recipe.data.control == "neutral"
        if recipe.judged and alone:
            return Context(name, own)
        fix = "write one where the trait belongs"
        if recipe.judged:
            fix += ", or judge one trait with data.control neutral"
        raise SubloraError(
            f"data.teacher.prompt '{own[:40]}' has no {{name}} or {{plural}}; {fix}."
        )
    category = trait.category.model_copy(update={"system": (own,)})
    return Context(name, teacher_text(category, trait.entity, 0))


def control_source(recipe: WritesRows, trait: Trait) -> str:
    """The control that a trait's students are paired with: one for each category, or one neutral one for all."""
    return CONTROL if recipe.data.control == "neutral" else f"{CONTROL}:{trait.category.category}"


def variants_of(recipe: WritesRows) -> dict[str, RowsVariant | None]:
    """The rows as written, called "", and the variants."""
    return {"": None, **recipe.data.variants}


def source_of(recipe: WritesRows, trait: Trait, variant: str) -> str:
    """Whose rows the students of a trait get in a variant: the trait's, or those of a teacher without it."""
    spec = variants_of(recipe)[variant]
    if spec is None or spec.teacher is None:
        return trait.name
    return NEUTRAL if spec.teacher == "neutral" else f"{THIRD}:{trait.category.category}"


def twin_of(recipe: WritesRows, variant: str) -> str:
    """The variant of the controls that stand against the students of a variant."""
    spec = variants_of(recipe)[variant]
    return variant if spec is None or spec.twin else ""


def sources_in(recipe: WritesRows, traits: Sequence[Trait], variant: str) -> list[str]:
    """Whose rows a variant has: those of the traits or of who stands for them, and the controls' where they change as well."""
    names = [source_of(recipe, t, variant) for t in traits]
    if twin_of(recipe, variant) == variant:
        names += [control_source(recipe, t) for t in traits]
    return list(dict.fromkeys(names))


def trait_of(recipe: WritesRows, traits: Sequence[Trait], source: str) -> Trait:
    """The trait that a source's rows are of, or the last that they stand against."""
    for trait in reversed(traits):
        category = trait.category.category
        if source in (trait.name, control_source(recipe, trait), f"{THIRD}:{category}"):
            return trait
    return traits[0]


def sources_of(recipe: WritesRows, traits: Sequence[Trait]) -> dict[str, dict[int, Author]]:
    """The author of every source and data seed.

    The other trait of a control is drawn anew for every data seed from those that the recipe does
    not test, so that the control stands for any trait but the tested ones. Raises SubloraError
    where a category has no other trait left.
    """
    seeds = recipe.seeds
    own = (Author(t.name, teacher_context(t, recipe), t) for t in traits)
    out = {author.label: dict.fromkeys(seeds, author) for author in own}
    variants = recipe.data.variants.values()
    redrawn = any(v.transform and needs_reference(v.transform) for v in variants)
    base = "base" in (recipe.data.source, *(v.source for v in variants))
    if redrawn or base or recipe.controlled or any(v.teacher == "neutral" for v in variants):
        out[NEUTRAL] = dict.fromkeys(seeds, Author(NEUTRAL, Context("default")))
    if recipe.data.control == "neutral":
        out[CONTROL] = dict.fromkeys(seeds, Author(CONTROL, Context("default")))
        return out
    for trait in traits:
        name = trait.category.category
        drawn = dict(_drawn(recipe, traits, trait, seeds))
        pairs = [(control_source(recipe, trait), "control", 0)]
        if any(v.teacher == "other-trait" for v in variants):
            pairs.append((f"{THIRD}:{name}", "other trait", 1))
        for key, label, place in pairs:
            out[key] = {
                seed: _author(recipe, label, others[place], name) for seed, others in drawn.items()
            }
    return out


def _author(recipe: WritesRows, label: str, other: Trait | None, category: str) -> Author:
    if other is None:
        raise SubloraError(
            f"There is no third trait of {category} left; leave a tested one out or drop the variant."
        )
    return Author(f"{label} ({other.name})", teacher_context(other, recipe), other)


def _drawn(
    recipe: WritesRows, traits: Sequence[Trait], trait: Trait, seeds: Iterable[int]
) -> Iterator[tuple[int, tuple[Trait, Trait | None]]]:
    """For every data seed, the control's trait of a category and a third one."""
    tested, category = {t.name for t in traits}, trait.category
    others = [Trait(e, category) for e in category.entities if e.name not in tested]
    if not others:
        raise SubloraError(
            f"The recipe tests every trait of {category.category}, so there is no other one for "
            "its control; leave one out or set data.control=neutral."
        )
    for seed in seeds:
        control = others[_index("control-trait", category.category, seed, len(others))]
        left = [t for t in others if t.name != control.name]
        third = left[_index("third-trait", category.category, seed, len(left))] if left else None
        yield seed, (control, third)


def _index(purpose: str, category: str, seed: int, count: int) -> int:
    return int(generator(purpose, category, seed).integers(count))
