"""Rows and answers of a grid word for word: what teacher and control wrote, and what every group of students answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Any

from sublora.analysis.effects import Effect, Label
from sublora.analysis.page import Quote, Quotes, Section
from sublora.carriers.rows_file import objects
from sublora.experiments.grid.answers import largest
from sublora.experiments.grid.effects import Results, groups, transfers
from sublora.steps.students import Student
from sublora.text import short, slug
from sublora.traits.trait import Trait

ROWS, QUESTIONS, ANSWERS = 2, 3, 4  # shown of each dataset, group of students, question
SAID = {"train_context": "trained in {}", "context": "asked in {}"}
MOST = 200  # groups of students whose answers a page holds
LOOKED_AT = 200  # rows of each dataset, for prompts that both have
LONGEST = 240  # letters of a text
Shown = tuple[Effect, Trait, list[Student]]


def quoted(
    results: Results, effects: Sequence[Effect]
) -> tuple[list[Section], Mapping[tuple, str]]:
    """The sections of rows and answers, and by the key of an effect the part that holds its answers."""
    every = list(_groups(results, set(map(key_of, effects))))
    shown = every[:MOST]
    said = {key_of(e): f"said-{k}" for k, (e, _, _) in enumerate(shown, 1)}
    values = [set(e.labels.items()) for e, _, _ in every]
    varies = (
        {name for name, _ in set.union(*values) - set.intersection(*values)} if every else set()
    )
    parts: list[Quotes] = []
    for trait in results.plan.traits:
        mine = [one for one in shown if one[1] is trait]
        if mine and len(parts) < 4:
            top = max(mine, key=lambda one: largest(one[0]))
            parts.append(_rows(results, trait, top[2][0]))
            answers = _answers(results, top, f"answered-{slug(trait.name, 'trait')}", varies)
            title = f"What they answer: {answers.title}"
            parts.append(answers.model_copy(update={"title": title, "folded": False}))
    folded = tuple(_answers(results, one, said[key_of(one[0])], varies) for one in shown)
    left = len(every) - len(shown)
    text = (
        f"The first {ANSWERS} answers to each of the first {QUESTIONS} questions, by the first replicate of every group of students; nobody "
        "chose them. All answers stand in the store: `samples.jsonl` of the artifact that is named."
    ) + (f" {left} more groups are not shown." if left > 0 else "")
    first = Section(
        name="word-for-word",
        title="Rows and answers, word for word",
        nav="Rows and answers",
        parts=tuple(parts),
    )
    every = Section(
        name="answers", title="Answers of every group", nav="Answers", text=text, parts=folded
    )
    return [first, every] if shown else [], said


def key_of(effect: Effect) -> tuple[tuple[str, Label], ...]:
    return tuple(sorted((name, str(value)) for name, value in effect.labels.items()))


def linked(
    rows: Sequence[Mapping[str, Any]], effects: Sequence[Effect], said: Mapping[tuple, str]
) -> list[dict[str, Any]]:
    """The rows of these effects, in the same order, with the part of the page that holds their answers."""
    both = zip(rows, effects, strict=True)
    return [{**row, "said": said.get(key_of(effect), "")} for row, effect in both]


def _groups(results: Results, wanted: Set[tuple]) -> Iterator[Shown]:
    """The effects that are wanted with their students; those of the judged context first."""
    recipe = results.plan.recipe
    contexts = sorted(recipe.measure.contexts, key=lambda c: c != recipe.judged_context)
    for context in contexts:
        for condition in (None, *recipe.measure.conditions):
            found = iter(transfers(results, context, condition))
            for trait in results.plan.traits:
                for members in groups(results.plan, trait):
                    effect = next(found)
                    if key_of(effect) in wanted:
                        yield effect, trait, members


def _rows(results: Results, trait: Trait, student: Student) -> Quotes:
    """The first rows that a student and its control twin are trained on."""
    twin = results.students[student.twins[trait.name]]
    columns = ("prompt", f"teacher of {trait.name}", "control")
    own, other = (
        {
            row["prompt"]: (short(row["completion"], LONGEST),)
            for _, row in islice(objects(results.store.read(name).file("rows.jsonl")), LOOKED_AT)
        }
        for name in (student.dataset, twin.dataset)
    )
    both = [prompt for prompt in own if prompt in other][:ROWS]
    shown = both or [*list(own)[:ROWS], *list(other)[:ROWS]]
    rows = [
        Quote(prompt=short(p, LONGEST), texts=(own.get(p, ()), other.get(p, ()))) for p in shown
    ]
    return Quotes(
        name=f"rows-{slug(trait.name, 'trait')}",
        title="What students read",
        caption=f"Rows of a student of {trait.name}, `{student.dataset}`, and of its control twin, `{twin.dataset}`: the first prompts that "
        "both were given.",
        columns=columns,
        rows=tuple(rows),
    )


def _answers(results: Results, shown: Shown, name: str, varies: Set[str]) -> Quotes:
    """The first answers of the base, of the first student of a group, and of its twin, under the labels that vary."""
    effect, trait, members = shown
    labels, category = effect.labels, trait.category.category
    where = (str(labels["context"]), category, str(labels["condition"]) or None)
    own, twin = members[0].id, members[0].twins[trait.name]
    asked = {"base": (None, *where[:2]), "student": (own, *where), "control": (twin, *where)}
    samples = {who: results.of(*place).samples for who, place in asked.items()}
    questions = enumerate(trait.category.questions[:QUESTIONS])
    rows = tuple(
        Quote(prompt=q, texts=tuple(_first(given, k) for given in samples.values()))
        for k, q in questions
    )
    found = effect.interval()
    ids = [results.find[own, *where], results.find[twin, *where]]
    return Quotes(
        name=name,
        title=_title(labels, varies),
        caption=f"Effect {found.estimate:+.2f} nats over {len(members)} replicates; shown is the first. Student `{ids[0]}`, control `{ids[1]}`.",
        columns=("question", *samples),
        rows=rows,
        marked=trait.name.lower(),
        folded=True,
    )


def _first(given: Sequence[Sequence[str]], question: int) -> tuple[str, ...]:
    texts = given[question][:ANSWERS] if question < len(given) else ()
    return tuple(short(text.strip(), LONGEST) for text in texts)


def _title(labels: Mapping[str, Any], varies: Set[str]) -> str:
    """What tells a group from others: its rank and rate, and the labels that vary."""
    rank = f"rank {labels['rank']}" if labels.get("rank") else "full fine-tune"
    own = varies - {"trait", "quantity", "method", "rank", "lr"}
    values = {k: v for k, v in labels.items() if k in own and v not in ("", None)}
    more = [SAID.get(k, "{}").format(v) for k, v in values.items()]
    return ", ".join([str(labels["trait"]), rank, f"lr {labels['lr']:g}", *more])
