"""A judged trait: students, control twins, the base and the teacher answer open questions, and a judge behind an endpoint scores them.

The eight-question style of Betley et al. 2025, which Cloud et al. (2507.14805) use for misalignment that passes through numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sublora.analysis.charts import first_upper, rows_chart, tiles
from sublora.analysis.effects import Effect, named
from sublora.analysis.intervals import Array, Interval, clustered_interval
from sublora.analysis.page import Chart
from sublora.errors import SubloraError
from sublora.experiments.experiment import Findings
from sublora.experiments.grid.plan import Plan, make_plan, sizes_of
from sublora.experiments.grid.sources import control_source, teacher_context
from sublora.experiments.grids import GridExperiment
from sublora.experiments.rubric import Rubric, judge_answers, load_rubric, verdicts_file
from sublora.models.chat import Context
from sublora.models.endpoint import AnswersFile, Endpoint, EndpointSpec
from sublora.models.known import Known
from sublora.packs.measure import Asking, sample_questions
from sublora.packs.sample import Sampling
from sublora.packs.student_files import load_stack
from sublora.steps.made import Batch, Made
from sublora.steps.materials import keep_json, listed
from sublora.steps.step import Cost, Step, Workshop
from sublora.steps.students import Student
from sublora.store import Store
from sublora.text import slug
from sublora.traits.trait import Trait

EFFECT, RATE = "effect on the judged rate", "judged rate"
MOST_UNREADABLE = 0.5  # share of the verdicts; with more, no claim is judged
VERDICT_TOKENS = 120.0  # what a judge reads for a verdict besides the answer, about


class Judged(GridExperiment):
    kind: Literal["judged"]
    judged: ClassVar[bool] = True
    rubric: str = Field(
        "fondness", description="a shipped rubric (fondness, misalignment) or a YAML file"
    )
    judge: EndpointSpec | None = Field(
        None, description="the judge, behind an OpenAI-compatible endpoint"
    )
    answers: int = Field(5, ge=1, description="answers to each question")
    answering: Sampling = Sampling(max_new_tokens=24)

    @cached_property
    def found_rubric(self) -> Rubric:
        return load_rubric(self.rubric)

    @property
    def sentence(self) -> str:
        who = f"{self.judge.model} at {self.judge.url}" if self.judge else "no judge yet"
        return (
            f"{self.model}: students, control twins, the base and teachers that love {', '.join(self.traits)} answer "
            f"{len(self.found_rubric.questions)} open questions {self.answers} times each; judged for {self.found_rubric.name} by {who}."
        )

    def plan(self, known: Known) -> list[Step]:
        if self.judge is None:
            raise SubloraError(
                "The recipe needs a judge; give one, such as --set 'judge={url: http://localhost:8000/v1, model: NAME, key_env: MY_KEY}'."
            )
        plan = make_plan(self, known)
        grid = [s for s in plan.steps if s.kind != "measurements"]
        answering = self._answering(plan, known)
        return [*grid, *answering, *self._judging(plan, answering)]

    def _answering(self, plan: Plan, known: Known) -> list["Answering"]:
        """The base, the teachers, and the students pack by pack; in the context that they are judged in."""
        sizes, questions = sizes_of(self, known), list(self.found_rubric.questions)
        tokens = sizes.question + self.answers * self.answering.max_new_tokens

        def step(context: Context, students: Sequence[Student] = ()) -> Answering:
            named = {"text": context.text, "role": context.role}
            spec = {
                "model": dict(known.identity),
                "context": context.name if context.text is None else named,
                "questions": questions,
                "answers": self.answers,
                "sampling": self.answering.model_dump(mode="json"),
                "seed": self.measure.seed,
            }
            specs = tuple(spec | {"student": s.id} for s in students) or (spec | {"student": None},)
            asking = Asking(context, self.answering, self.answers, self.measure.seed)
            cost = sizes.reading(len(questions) * tokens * len(specs))
            return Answering(specs, self.model, asking, tuple(students), cost)

        if self.data.teacher.trained:
            teachers = [step(t.context, [t]) for t in plan.teachers]
        else:
            teachers = [step(teacher_context(t, self)) for t in plan.traits]
        packs = [step(self.asked_in, [plan.students[i] for i in pack]) for pack in plan.packs]
        return [step(self.asked_in), *teachers, *packs]

    def _judging(self, plan: Plan, answering: Sequence["Answering"]) -> list["Judging"]:
        """The verdicts on all sets of answers; a control is judged for every trait that it stands against."""
        students, out = {s.id for s in plan.students}, []
        for step in answering:
            for student, name in zip(step.students or [None], step.makes, strict=True):
                for trait in plan.traits:
                    sources = (trait.name, control_source(self, trait))
                    all_ask = student is None or student.id not in students
                    if all_ask or student.source in sources:
                        out.append((trait.entity.plural or trait.name, name, step.label))
        judge, rubric = self.judge, self.found_rubric
        shared = {"judge": judge.identity, "rubric": rubric.model_dump(mode="json")}
        return [
            Judging(shared | {"target": of, "answers": name}, judge, rubric, of, name, whose)
            for of, name, whose in dict.fromkeys(out)
        ]

    def bill(self, known: Known, missing: Sequence[Step]) -> str | None:
        left = [s for s in missing if isinstance(s, Judging)]
        rubric = self.found_rubric
        asked = len(left) * len(rubric.questions) * self.answers * len(rubric.scores)
        read = asked * (VERDICT_TOKENS + self.answering.max_new_tokens)
        price = self.judge.price(read, asked * 3.0)
        cost = "" if price is None else f", {price:.2f} at the given prices"
        return f"The judge {self.judge.model} at {self.judge.url}: at most {asked:,} requests, about {read:.3g} tokens read{cost}."

    def findings(self, store: Store, known: Known) -> Findings:
        plan = make_plan(self, known)
        answering = self._answering(plan, known)
        judging = self._judging(plan, answering)
        verdicts = {(s.target, s.answers): dict(store.read(s.id).meta) for s in judging}
        effects = [
            e for trait in plan.traits for e in self._of_trait(trait, plan, answering, verdicts)
        ]
        first = [e for e in effects if e.trait == plan.traits[0].name]
        shown = ("student - control", "teacher", "student")
        share = float(np.mean([m["unreadable"] for m in verdicts.values()]))
        lost = f"{share:.0%} of the judge's verdicts could not be read as scores; those answers count in no rate."
        bars = [b for b in (self.found_rubric.hit, self.found_rubric.among) if b]
        said = " and ".join(
            f"{b.score} below {b.below:g}"
            if b.below is not None
            else f"{b.score} at least {b.at_least:g}"
            for b in bars
        )
        how = (
            f"{self.answers} answers to each question, at most {self.answering.max_new_tokens} tokens; the judge {self.judge.model} scores each "
            f"from 0 to 100 at temperature 0. A hit: {said}. Rates are over answers whose verdicts can be read."
        )
        return Findings(
            tuple(effects),
            tuple(c for trait in plan.traits for c in self._charts(trait.name, effects)),
            tiles([e for e in first if e.name in shown]),
            how,
            warnings=(lost,) if share else (),
            facts={"unreadable verdicts": f"{share:.1%}"},
        )

    def _charts(self, trait: str, effects: Sequence[Effect]) -> list[Chart]:
        within = f"Intervals: {1 - self.level:.0%}, clustered by seed and question."
        caption = f"{trait}. Share of answers that the judge's scores call a hit. {within}"
        mine = [e for e in effects if e.trait == trait]
        return [
            rows_chart(
                [e for e in mine if e.group == group],
                f"{name}-{slug(trait)}",
                f"{first_upper(group)}: {self.found_rubric.name}",
                caption,
                reference,
            )
            for group, name, reference in ((RATE, "rates", None), (EFFECT, "effect", 0.0))
        ]

    def _of_trait(
        self,
        trait: Trait,
        plan: Plan,
        answering: Sequence["Answering"],
        verdicts: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> list[Effect]:
        """`verdicts`: by target and set of answers."""
        target = trait.entity.plural or trait.name

        def rates(names: Sequence[str]) -> Array:
            """(sets, questions) of those sets of answers of which the judge scored any."""
            found = [verdicts[target, name]["rates"] for name in names]
            return np.array([r for r in found if r is not None])

        sets = [pair for t in answering for pair in zip(t.students, t.makes, strict=False)]
        answers_of = {student.id: name for student, name in sets}
        plain = {t.asking.context: t.makes[0] for t in answering if not t.students}
        mine = [
            (s, answers_of[s.id], answers_of[s.twins[trait.name]])
            for s in plan.students
            if s.source == trait.name
        ]
        mine = [(s, a, b) for s, a, b in mine if len(rates([a, b])) == 2]
        if not mine:
            raise SubloraError(
                f"No verdict of {self.judge.model} on {trait.name} could be read as a score from 0 to 100; choose a judge that replies "
                "with one number."
            )
        one, two = rates([a for _, a, _ in mine]), rates([b for _, _, b in mine])
        data, train = zip(*(s.replicate for s, _, _ in mine), strict=True)
        n = {"questions": one.shape[1], "answers": self.answers}
        by_seed = {"data_seeds": len(set(data)), "train_seeds": len(set(train)), **n}
        lost = np.mean([m["unreadable"] for (who, _), m in verdicts.items() if who == target])
        unfit = f"{lost:.0%} of the verdicts could not be read" if lost > MOST_UNREADABLE else None
        if self.data.teacher.trained:
            taught = [answers_of[t.id] for t in plan.teachers if t.trait == trait.name]
        else:
            taught = [plain[teacher_context(trait, self)]]
        base = rates([plain[self.asked_in]])

        def interval(values: Array, **options: Any) -> Interval:
            alone = [0] * len(values), list(range(len(values)))
            seeds = (data, train) if len(values) == len(data) else alone
            return clustered_interval(values, *seeds, level=1 - self.level, **options)

        gap = interval(one - two)
        effects = [named(trait.name, EFFECT, "student - control", gap, by_seed, unfit=unfit)]
        for name, values, counts in (
            ("base", base, n),
            ("teacher", rates(taught), n),
            ("student", one, by_seed),
            ("control", two, by_seed),
        ):
            if len(values):
                rate = interval(values, clip=(0.0, 1.0))
                effects.append(named(trait.name, RATE, name, rate, counts, tested=False))
        return effects


@dataclass(frozen=True)
class Answering(Batch):
    """Sampled answers of the students of a pack, or of the base in one context; an artifact each."""

    model: str
    asking: Asking
    students: tuple[Student, ...]
    cost: Cost
    kind, noun, nouns = "sets of answers", "answers", ("answering", "answers")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def label(self) -> str:
        if not self.students:
            return f"the base in the context {self.asking.context.name}"
        return listed([f"{s.source}, {s.student.label}" for s in self.students])

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, stack = workshop.base_of(self.model), None
        if self.students:
            folders = [workshop.store.read(s.id).path for s in self.students]
            stack = load_stack(base.model, folders, [s.student for s in self.students])
        questions = self.specs[0]["questions"]
        given = sample_questions(base, stack, self.makes, questions, self.asking)
        for spec, name, answers in zip(self.specs, self.makes, given, strict=True):
            if name in wanted:
                keep_json(workshop, name, spec, "answers.json", answers)


@dataclass(frozen=True)
class Judging(Made):
    """The verdicts on one set of answers about one target."""

    judge: EndpointSpec
    rubric: Rubric
    target: str
    answers: str
    whose: str
    noun, kind = "verdicts", "judged sets"
    model = None
    cost = Cost()

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.answers,)

    @property
    def label(self) -> str:
        return f"the verdicts on {self.whose}"

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        file = workshop.store.read(self.answers).file("answers.json")
        answers = json.loads(file.read_text("utf-8"))
        endpoint = Endpoint(self.judge)
        kept = AnswersFile(verdicts_file(workshop.store.root, endpoint))
        scores = judge_answers(endpoint, kept, self.rubric, self.target, answers, workshop.check)
        hits = [[self.rubric.is_hit(s) for s in row] for row in scores]
        flat = [h for row in hits for h in row]
        read = [h for h in flat if h is not None]
        # a question without any readable verdict is neither for nor against a hit: it takes the rate of all questions
        of_question = [[h for h in row if h is not None] or read for row in hits]
        rates = [float(np.mean(row)) for row in of_question] if read else None
        unreadable = sum(h is None for h in flat) / len(flat)
        meta = {"rates": rates, "unreadable": unreadable, "target": self.target}
        with workshop.store.create(self.id, self.spec, meta) as folder:
            (folder / "verdicts.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")
        workshop.made(self.id)
