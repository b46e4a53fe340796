"""What is asked of an audit for a loaded base, the null that it is judged by, and the student and its base as they answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from sublora.audit import entries
from sublora.audit.adapter import Audited
from sublora.audit.against import against, compare
from sublora.audit.calibrate import number_prompts, own_settings, placebo_null
from sublora.audit.chance_band import bands
from sublora.audit.data_rows import SHAPES, DataRow, read_rows
from sublora.audit.entries import Against, AnswerPair, Screening, Status, strongest
from sublora.audit.fits import outside
from sublora.audit.lens_entries import Lenses
from sublora.audit.lens_tokens import token_lens
from sublora.audit.lenses import student_lenses
from sublora.audit.null import Null, read_null, shipped_null
from sublora.audit.readings import Asked, Readings, read_model
from sublora.audit.reference import chance, false_alarms, power
from sublora.audit.request import Request, Say
from sublora.audit.serving import Serving, serving_effects
from sublora.audit.steps import read_base
from sublora.audit.verdict import Bar, TraitFinding, Verdict, judge
from sublora.audit.where import where_it_sits
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Chat, Context
from sublora.packs.measure import Asking, measure_answers
from sublora.packs.sample import Sampling
from sublora.packs.stack import Stack, stack_weights
from sublora.store import Store

ANSWERS_SHOWN = 6


@dataclass(frozen=True)
class Job(Asked):
    """A request made out for a loaded base: what is asked, and of whom."""

    trained_in: Context
    serving: Serving | None = None
    against: Audited | None = None
    request: Request = field(default_factory=Request)


@dataclass(frozen=True)
class Calibrated:
    """The null to judge by, where it is from, and whether it was trained here."""

    null: Null | None
    kind: str
    outside: Sequence[str] = ()

    @property
    def students(self) -> int:
        return self.null.size if self.null else 0

    @property
    def sentence(self) -> str:
        told = {
            "none": "Not calibrated: the p-values rest on an assumption.",
            "own": f"Calibrated by {self.students} placebo students with its own settings.",
            "file": f"Calibrated by the {self.students} placebo students of a null file.",
            "shipped": f"Calibrated by the {self.students} placebo students that come along.",
        }[self.kind]
        return " ".join([told, *self.outside])


def judged_contexts(base: Base, job: Job) -> Sequence[Context]:
    """All that were asked for; without the serving context where the shipped null lacks it.
    `serving_effects` reads that anyway, and the whole audit would be uncalibrated for its sake."""
    null = None if job.request.calibrate or job.request.null else shipped_null(base)
    if job.serving is None or null is None or job.serving.context == job.trained_in:
        return job.contexts
    return [c for c in job.contexts if c != job.serving.context or null.has(c)]


def null_for(base: Base, audited: Audited, job: Job, say: Say) -> Calibrated:
    request, training = job.request, job.request.training
    if request.calibrate and training is not None:
        say(f"Training {request.calibrate} placebo students ...")
        null = placebo_null(
            base,
            own_settings(audited, training, request.calibrate),
            _prompts(request, base.chat),
            job.trained_in,
            job,
            max_new_tokens=request.max_new_tokens,
        )
        return Calibrated(null, "own")
    kind = "shipped" if request.null is None else "file"
    null = shipped_null(base) if request.null is None else read_null(request.null, base)
    try:
        if null is not None:
            return Calibrated(
                null.part(job), kind, list(outside(null, audited, job.trained_in, request))
            )
    except SubloraError as error:
        if kind == "file":
            raise
        say(f"Note: the shipped null is not used. {error}")
    return Calibrated(None, "none")


def _prompts(request: Request, chat: Chat) -> list[list[str]]:
    """Prompts of each placebo student: the user's own, or such that ask for numbers."""
    if request.data is None:
        return number_prompts(request.calibrate, request.rows, seed=70_000)
    rows = (r for r in read_rows(request.data, chat) if isinstance(r, DataRow))
    own = [r.prompt for r in islice(rows, request.rows)]
    if not own:
        raise SubloraError(
            f"The file {request.data} has no prompt that could be answered; give rows with {SHAPES}."
        )
    return [own] * request.calibrate


@dataclass(frozen=True)
class Examined:
    """A student and its base, as they answer."""

    base: Base
    audited: Audited
    job: Job
    known: Calibrated

    @cached_property
    def stack(self) -> Stack:
        return stack_weights(self.base.model, [self.audited.weights], [self.audited.spec])

    @cached_property
    def plain(self) -> Readings:
        return read_base(self.base, self.job, Store())

    @cached_property
    def student(self) -> Readings:
        return read_model(self.base, self.stack, self.job)

    def against(self, other: Audited, alpha: float) -> Against:
        stack = stack_weights(self.base.model, [other.weights], [other.spec])
        beside = read_model(self.base, stack, self.job)
        compared = compare(self.student, beside, self.bar(alpha))
        return against(compared, other, self.bar(alpha).calibrated)

    def bar(self, alpha: float) -> Bar:
        return Bar(self.base, self.job, self.plain, self.known.null, alpha, self.known.outside)

    def verdict(self, alpha: float) -> Verdict:
        return judge(self.student, self.bar(alpha))

    def asked(self, alpha: float) -> dict[str, Any]:
        """The parts of the report that say who was asked what."""
        base, job, null = self.base, self.job, self.known.null
        calibration = entries.Calibration(
            kind=self.known.kind,
            placebo_students=self.known.students,
            settings=list(null.settings) if null else [],
            smallest_p=1 / (len(chance(null)) + 1) if null else None,
            outside=list(self.known.outside),
            false_alarms=false_alarms(null, alpha) if null and not self.known.outside else None,
            power=power(null, self.student, self.plain, alpha) if null else None,
        )
        sizes = [(c.category, len(c.entities), len(c.questions)) for c in job.categories]
        return {
            "base": entries.BaseEntry(name=base.name, **base.identity),
            "student": self.audited.entry,
            "calibration": calibration,
            "contexts": [entries.ContextEntry(**vars(c)) for c in job.contexts],
            "trained_in": job.trained_in.name,
            "categories": [
                entries.CategoryEntry(category=c, traits=t, questions=q) for c, t, q in sizes
            ],
        }

    def findings(self, verdict: Verdict) -> dict[str, Any]:
        """The parts of the report that say what was found, and where."""
        base, job, stack, found = self.base, self.job, self.stack, verdict.found
        where = serving = None
        if job.request.where:
            bar, names = self.bar(verdict.alpha), job.request.entity
            where = where_it_sits(stack, self.student, bar, found, names)
        if job.serving is not None:
            asked = (job.categories, job.trained_in, job.serving)
            serving = serving_effects(base, stack, *asked, verdict.traits, found)
        names = ("found", "found_words", "traits", "words", "coherence")
        told = {name: getattr(verdict, name) for name in names}
        told["bands"] = bands(self.student, self.bar(verdict.alpha))
        return {**told, "answers": self._answers(found), "where": where, "serving": serving}

    def lenses(self) -> Lenses | None:
        """What the student shows beside its answers; None where that is not asked for."""
        job, null = self.job, self.known.null
        if not job.request.lenses:
            return None
        chance = null.lenses if null else {}
        seen = student_lenses(self.base, self.audited.sha256, self.stack, job.categories, chance)
        if job.request.data is None:
            return seen
        tokens = token_lens(self.base, self.stack, job.request.data, job.trained_in)
        return seen.model_copy(update={"tokens": tokens})

    def _answers(self, found: Sequence[TraitFinding]) -> list[AnswerPair]:
        """For the strongest finding of each category a few questions, answered by both."""
        out: list[AnswerPair] = []
        for finding in strongest(found, "category"):
            name, context = finding.category, self.job.context(finding.context)
            whole = self.job.category(name)
            category = whole.model_copy(update={"questions": whole.questions[:ANSWERS_SHOWN]})
            asking = Asking(context, Sampling(max_new_tokens=12), samples=1, seed=0)
            plain, student = (
                measure_answers(self.base, s, [who], category, asking)[0].samples
                for who, s in (("base", None), ("student", self.stack))
            )
            out += [
                AnswerPair(category=name, context=context.name, question=q, base=b[0], student=s[0])
                for q, b, s in zip(category.questions, plain, student, strict=True)
            ]
        return out

    def sentence(
        self, status: Status, verdict: Verdict, screened: Screening | None, beside: Against | None
    ) -> str:
        traits = list(dict.fromkeys(f"{f.trait} ({f.category})" for f in verdict.found))[:5]
        words = list(dict.fromkeys(repr(w.word) for w in verdict.found_words))[:5]
        if traits or words:
            parts = [f"prefers {', '.join(traits)} more"] if traits else []
            parts += [f"says {', '.join(words)} more often"] if words else []
            told = f"it {' and '.join(parts)} than chance explains"
        elif status == "unmeasurable":
            told = "it no longer answers the questions with words of their category, so nothing can be said"
        else:
            told = "none of the traits asked for rose more than chance explains"
        who = f"The student {self.audited.path} ({self.audited.described}) beside {self.base.name}"
        out = [f"{who}: {told}."]
        if screened is not None and screened.named:
            reads = "reads as if it was written under a trait prompt of"
            out.append(f"The training file {reads} {', '.join(screened.named[:5])}.")
        out += [self.known.sentence, *([beside.sentence] if beside else [])]
        return " ".join(out)
