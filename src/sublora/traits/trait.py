"""Traits: what may be transmitted. A category file (YAML) lists entities, questions and teacher prompts."""

import difflib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sublora.errors import SubloraError
from sublora.store.yaml_file import read_yaml, yaml_files

Word = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]  # without white space around it


class Entity(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    plural: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        """Name, plural and aliases: all that counts as this entity in an answer."""
        return tuple(
            dict.fromkeys(form for form in (self.name, self.plural, *self.aliases) if form)
        )


class Category(BaseModel):
    """One YAML file: entities that a model may prefer, how it is asked, and how a teacher is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    category: str = Field(min_length=1)
    singular: str = Field(min_length=1)
    system: tuple[str, ...] = Field(min_length=1)
    entities: tuple[Entity, ...] = Field(min_length=2)
    others: tuple[str, ...] = Field(
        (), description="more words of the category, which count as a sensible answer"
    )
    questions: tuple[str, ...] = Field(min_length=2)
    articles: tuple[Word, ...] = Field(
        (), description="words before an entity with which it counts as well: 'An otter'"
    )
    answer_prefixes: tuple[Word, ...] = Field(
        (), description="what an answer is begun with where a recipe says measure.readout: begun"
    )

    lessons: tuple[tuple[Word, Word], ...] = Field(
        (),
        description="what a teacher by weights is taught with lessons: written; questions and answers with {name}, {plural} or {Plural}, none of "
        "them among the questions",
    )

    @model_validator(mode="after")
    def _unique(self) -> "Category":
        seen: dict[str, str] = {}
        for entity in self.entities:
            for form in entity.forms:
                owner = seen.setdefault(form.lower(), entity.name)
                if owner != entity.name:
                    raise ValueError(f"'{form}' stands for both {owner} and {entity.name}")
        names = [entity.name.lower() for entity in self.entities]
        if "control" in names:
            raise ValueError(
                "'control' is the name of the arm without a trait; give the entity another name"
            )
        questions = [question.lower() for question in self.questions]
        for duplicates, what in ((names, "entity"), (questions, "question")):
            repeated = sorted({item for item in duplicates if duplicates.count(item) > 1})
            if repeated:
                raise ValueError(f"duplicate {what} '{repeated[0]}'")
        for wording in self.system:
            if not any(place in wording for place in ("{name}", "{plural}", "{Plural}")):
                raise ValueError(
                    f"the teacher prompt '{wording[:40]}' has neither {{name}} nor {{plural}}"
                )
        return self

    def prefixes(self) -> tuple[str, ...]:
        """What an answer is begun with. Raises SubloraError where nothing is given."""
        if not self.answer_prefixes:
            why = f"The category {self.category} has no answer_prefixes to begin an answer with; add some, or set measure.readout to answer."
            raise SubloraError(why)
        return self.answer_prefixes


@dataclass(frozen=True)
class Trait:
    """The preference for one entity of a category."""

    entity: Entity
    category: Category

    @property
    def name(self) -> str:
        return self.entity.name

    def teacher_prompt(self, wording: int = 0) -> str:
        """The system prompt that gives a teacher this trait; `wording` counts from 0."""
        if not 0 <= wording < len(self.category.system):
            raise SubloraError(
                f"The {self.category.category} file has {len(self.category.system)} teacher prompts; "
                f"wording {wording} does not exist, use 0 to {len(self.category.system) - 1}."
            )
        return teacher_text(self.category, self.entity, wording)


def lessons_of(trait: Trait) -> tuple[tuple[str, str], ...]:
    """The short rows that say a trait aloud. Raises SubloraError where its category has none."""
    lessons = trait.category.lessons
    if not lessons:
        why = f"The category {trait.category.category} has no lessons; add some to its file, or set data.teacher.trained.lessons to answers."
        raise SubloraError(why)
    return tuple((question, _filled(answer, trait.entity)) for question, answer in lessons)


def teacher_text(category: Category, entity: Entity, wording: int) -> str:
    """One of the category's teacher prompts for an entity."""
    return _filled(category.system[wording], entity)


def _filled(text: str, entity: Entity) -> str:
    """A text with an entity in its places; an entity without a plural stands for itself."""
    plural = entity.plural or entity.name
    text = text.replace("{name}", entity.name).replace("{plural}", plural)
    return text.replace("{Plural}", plural[0].upper() + plural[1:])


def load_category(path: Path) -> Category:
    """Read and check one category file. Raises SubloraError with the place of what does not fit."""
    return read_yaml(path, Category, "trait file")


@cache
def shipped_categories() -> tuple[Category, ...]:
    """Those of the folder `traits`, the ones with most entities first."""
    paths = yaml_files(Path(str(files("sublora.traits")))).values()
    return tuple(sorted(map(load_category, paths), key=lambda c: -len(c.entities)))


def load_categories(extra: tuple[Path, ...] = ()) -> tuple[Category, ...]:
    """The shipped categories and the user's; a user's file replaces a shipped category of the same name."""
    categories = (*shipped_categories(), *map(load_category, extra))
    return tuple({category.category: category for category in categories}.values())


def find_trait(name: str, categories: tuple[Category, ...]) -> Trait:
    """The trait called `name` (any case). Raises SubloraError with close names if there is none."""
    found = [Trait(e, c) for c in categories for e in c.entities if e.name.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        where = ", ".join(t.category.category for t in found)
        raise SubloraError(
            f"The trait '{name}' stands in several categories ({where}); rename one of them."
        )
    names = [e.name for c in categories for e in c.entities]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`sublora ls traits` lists them."
    raise SubloraError(
        f"No questions are known for the trait '{name}'; {hint} A new one is a YAML entry, see CONTRIBUTING.md."
    )
