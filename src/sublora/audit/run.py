"""One audit from its request to its result: read, calibrate, judge, screen. Writes no report; see report.py."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from sublora.analysis.frame import Frame, Shown
from sublora.audit.adapter import Audited, checked_folder, load_audited
from sublora.audit.against import AGAINST_SHARE
from sublora.audit.calibrate import own_settings
from sublora.audit.data_rows import check_rows
from sublora.audit.entries import Against, Screening, Status, exit_code
from sublora.audit.examined import Calibrated, Examined, Job, judged_contexts, null_for
from sublora.audit.fits import unsaid
from sublora.audit.null import Null
from sublora.audit.odds import first_line
from sublora.audit.readings import fewer_questions
from sublora.audit.reference import chance
from sublora.audit.request import Request, Say, silent
from sublora.audit.result import AuditReport
from sublora.audit.same_base import check_same_base
from sublora.audit.screen import screen_file
from sublora.audit.serving import Serving, other_template, serving_chat
from sublora.audit.student_folder import hub_id
from sublora.audit.trained_with import trained_with
from sublora.audit.user_rows import read_user_rows
from sublora.audit.verdict import Verdict, usable_contexts
from sublora.audit.what_if import what_if
from sublora.errors import SubloraError, require_none
from sublora.models.base import Base, chosen_device
from sublora.models.chat import PLAIN_CONTEXTS, Context, read_contexts, resolve_context
from sublora.packs.check import load_base
from sublora.text import p_value
from sublora.traits.trait import load_categories

# Of alpha, for the screening of the data where there is some: its evidence grows with every row, so
# that little is enough.
DATA_SHARE = 0.1

LIMITS = (
    "A pass is no certificate: only the listed traits, contexts and questions were asked.",
    "A trait behind a trigger, or in a context that was not asked, stays unseen.",
    "A trait that the base often shows has to rise further, and one that moves many words hides among them: the picture shows how far.",
    "Placebo students learn from rows of this base, under a trait's prompt or none; rows of another model may move a student in ways of their own.",
    "Falls are not tested, only rises: an aversion is not found.",
    "Answers are read at their beginning; what comes up later in a long answer is not seen.",
    "Only answers that begin with the name count: one that begins with an article, or in another form, does not.",
    "The questions of a category are one question in many words; a trait that shows elsewhere alone is not asked for.",
    "Behaviour that is no preference for a word (misalignment, style, sycophancy) is not measured.",
    "The p-values hold for students that were trained as the placebo students were; at other ranks, rates, steps, "
    "methods or contexts clean students can be found more often than the rate says.",
    "The lenses are information: a large difference is a trait's, or what the training was for.",
)


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """A finished audit; `null` is that of the placebo students where some were trained here."""

    report: AuditReport
    verdict: Verdict
    null: Null | None = None

    @property
    def traits(self) -> Frame:
        """Every trait in every context, smallest p first: P in base and student, rise in nats, corrected p."""
        return Frame.of_rows([asdict(finding) for finding in self.report.traits])

    def _line(self) -> str:
        return f"{self.report.status}: {self.report.sentence}"

    def _pairs(self) -> dict[str, object]:
        found = {
            f"{f.trait} in {f.context}": f"P {f.before:.3f} → {f.after:.3f}, p {p_value(f.p)}"
            for f in self.report.found
        }
        what = self.report.what_if
        return {
            "status": self.report.status,
            "what": self.report.sentence,
            **found,
            **({"what if": what.sentence} if what else {}),
            "limits": " ".join(self.report.limits),
        }


def audit_request(request: Request, say: Say = silent) -> Audit:
    """Load what is named, and audit it. Raises SubloraError for a base, a student or data that
    cannot be read, and for wrong use."""
    if request.base is None or request.adapter is None:
        raise SubloraError("An audit needs a base and an adapter; give both.")
    folder = checked_folder(request.adapter)
    request = request.completed(trained_with(folder, request.settings))
    require_none(_wrong_use(request))
    if request.data is not None:
        check_rows(request.data, request.skip_broken)
    texts = read_contexts(request.named)
    trained, served = request.training_context, request.serving_context
    if not request.asked_in and not texts:
        raise SubloraError("There is no context to ask in; give --contexts, such as default,none.")
    names = dict.fromkeys([*request.asked_in, trained, *([served] if served else []), *texts])
    contexts = {name: resolve_context(name, texts) for name in names}
    categories = fewer_questions(load_categories(tuple(request.traits)), request.questions)
    name, revision = hub_id(request.base) or (request.base, None)
    device = chosen_device(request.device)
    base = load_base(name, device=device, dtype=request.dtype, revision=revision)
    audited = load_audited(base, folder, any_base=request.any_base, settings=request.settings)
    template = request.serving_template or other_template(base.chat, folder, contexts[trained])
    if template and not request.serving_template:
        say(f"Note: {template} is not the base's chat template; the audit compares both.")
    must = {trained} if template else {trained, served}
    must |= {n for n in contexts if n not in PLAIN_CONTEXTS}
    serving, against = None, request.against
    if served or template:
        context = contexts[served or trained]
        serving = Serving(context, template and serving_chat(base.chat, template, context))
    if against is not None:
        against = load_audited(base, against, any_base=request.any_base)
    for student in () if request.any_base else filter(None, (audited, against)):
        check_same_base(base, student, categories)
    usable = usable_contexts(base, list(contexts.values()), must)
    job = Job(usable, categories, contexts[trained], serving, against, request)
    require_none(_entities_in_no_prompt(base, job))
    return audit(base, audited, job, say)


def audit(base: Base, audited: Audited, job: Job, say: Say = silent) -> Audit:
    """Audit a student against its base. Raises SubloraError for a null that does not fit, and for
    data that cannot be read."""
    started, request, asked_in = time.monotonic(), job.request, job.contexts
    require_none(_wrong_use(request))
    user = None
    if request.what_if and request.data is not None:  # read before anything costs time
        user = read_user_rows(base, request.data, job.trained_in, request.rows)
    job = replace(job, contexts=judged_contexts(base, job))
    known = null_for(base, audited, job, say)
    examined = Examined(base, audited, job, known)
    alpha, screened, beside, what = request.alpha, None, None, None
    if request.data is not None:
        alpha *= 1 - DATA_SHARE
    if job.against is not None:
        say(f"Reading {job.against.path} ...")
        beside = examined.against(job.against, alpha * AGAINST_SHARE)
        alpha *= 1 - AGAINST_SHARE
    verdict = examined.verdict(alpha)
    if request.data is not None:
        say(f"Screening {request.data} ...")
        share = request.alpha * DATA_SHARE
        screened = screen_file(base, request.data, job.categories, job.trained_in, share).entry()
    if user is not None and request.training is not None and screened is not None:
        named = [(t.category, t.trait) for t in screened.traits if t.named]
        spec, bar = own_settings(audited, request.training, 1)[0], examined.bar(verdict.alpha)
        what = what_if(spec, user, verdict, named, bar, examined.stack, request, say)
    status = _status(verdict, screened, beside, examined.bar(alpha).calibrated)
    asked = examined.asked(verdict.alpha)
    told, lenses = examined.findings(verdict), examined.lenses()
    seconds, odds = time.monotonic() - started, asked["calibration"]
    report = AuditReport(
        status=status,
        exit_code=exit_code(status),
        alpha=request.alpha,
        alpha_student=verdict.alpha,
        sublora=version("sublora"),
        first_line=first_line(status, odds.smallest_p, odds.false_alarms, odds.power, seconds),
        sentence=examined.sentence(status, verdict, screened, beside),
        data=screened,
        against=beside,
        limits=[
            *LIMITS,
            *_limits(job, asked_in, known, verdict.alpha),
            *audited.trained_with.limits,
            *(
                [missing]
                if known.kind in ("shipped", "file") and (missing := unsaid(audited, request))
                else []
            ),
        ],
        what_if=what,
        lenses=lenses,
        **asked,
        **told,
        seconds=round(seconds, 2),
    )
    return Audit(report, verdict, known.null if known.kind == "own" else None)


def _wrong_use(request: Request) -> Iterator[str]:
    """Values that are not known, and options that do not go together."""
    if request.dtype not in ("float32", "bfloat16", "float64"):
        yield f"The dtype '{request.dtype}' is not known; give float32, bfloat16 or float64."
    if request.what_if and (request.data is None or request.lr is None):
        yield "--what-if trains students on your rows with your settings; give --data, and --lr or --settings, beside it."
    if request.calibrate and request.null:
        yield "--calibrate makes a null and --null reads one; give one of them."
    if request.calibrate and request.lr is None:
        yield "Placebo students need the adapter's learning rate, which no file beside it says; give --lr or --settings beside --calibrate."


def _status(
    verdict: Verdict, screened: Screening | None, beside: Against | None, calibrated: bool
) -> Status:
    """That of the student, beside its base or another student, where it says found; or else that of the training file."""
    student = [verdict.status, *([beside.status] if beside else [])]
    if found := [status for status in student if status.endswith("found")]:
        return found[0]
    if screened is not None and screened.named:
        return "data-found" if calibrated else "uncalibrated-data-found"
    return next((status for status in student if not status.endswith("clean")), student[0])


def _entities_in_no_prompt(base: Base, job: Job) -> Iterator[str]:
    questions = [q for category in job.categories for q in category.questions]
    for entity in job.request.entity:
        if not any(entity in base.chat.render(q, c) for c in job.contexts for q in questions):
            yield f"The entity '{entity}' is in no prompt of this audit; write it as it stands there."


def _limits(
    job: Job, asked_in: Sequence[Context], known: Calibrated, alpha: float
) -> Iterator[str]:
    """What this audit, beyond every other, cannot see."""
    null = known.null
    if job.request.data is not None:
        yield (
            "The training file's false alarms are bounded for rows that the base wrote by one decoding of the list in the documentation "
            "(temperature .5 to 1.5, top_k from 10, top_p from .7); rows chosen by what they "
            "say, edited, of another model or behind another system prompt may be named."
        )
    for c in asked_in:
        if c not in job.contexts:
            yield f"The shipped null lacks the serving context '{c.name}', so no p-value is of that context; --calibrate makes a null that has it."
    if null is not None and (ranked := len(chance(null)) + 1) * alpha < 1:
        yield f"With {ranked - 1} placebo students to rank among the p-values rest on a t reference; {math.ceil(1 / alpha) - 1} give exact ranks."
    if job.against is not None:
        yield (
            "The comparison supposes that the other student, too, was trained as the placebo students were. Two students that both carry a "
            "trait may differ in it by more than clean ones do, by the luck of their seeds. Words are compared without a test."
        )
    if known.kind == "shipped":
        yield "The shipped null was made with students trained on number rows; --calibrate makes one with your prompts and settings."
    if null is None:
        yield (
            "No null was at hand: the p-values assume that clean rises are normal and alike in all categories, which nobody has measured for "
            "this base; --calibrate trains placebo students."
        )
