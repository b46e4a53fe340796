"""One audit from its arguments to its result: read, calibrate, judge, screen. Writes nothing; see report.py."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from sublora.audit.adapter import Audited
from sublora.audit.against import AGAINST_SHARE, compare
from sublora.audit.calibrate import Training, number_prompts, own_settings, placebo_null
from sublora.audit.data_rows import DataRow, read_rows
from sublora.audit.null import Null, read_null, shipped_null
from sublora.audit.readings import read_model
from sublora.audit.reference import ranked_among
from sublora.audit.screen import screen_file
from sublora.audit.serving import Serving, serving_effects
from sublora.audit.verdict import TraitFinding, Verdict, exit_code, judge
from sublora.audit.what_if import Asked, what_if
from sublora.audit.what_if_rows import UserRows, read_user_rows
from sublora.audit.where import where_it_sits
from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.measure import Asking, measure_answers
from sublora.model import Base
from sublora.sample import Sampling
from sublora.train.stack import stack_weights
from sublora.trait import Category

SCHEMA, VERSION = "sublora/audit", 1
ANSWERS_SHOWN = 6
# Of alpha, for the screening of the data where there is some: its evidence grows with every row, so that little is enough.
DATA_SHARE = 0.1

LIMITS = (
    "A pass is no certificate: only the listed traits, contexts and questions were asked.",
    "A trait behind a trigger, or in a context that was not asked, stays unseen.",
    "Falls are not tested, only rises: an aversion is not found.",
    "Answers are read at their beginning; what comes up later in a long answer is not seen.",
    "Behaviour that is no preference for a word (misalignment, style, sycophancy) is not measured.",
)


@dataclass(frozen=True)
class Request:
    """What is asked of an audit. `calibrate` placebo students are trained where it is above 0, with `training`. `where`: whether
    found traits are located; `entities` are names whose tokens are then a class of their own."""

    contexts: Sequence[Context]
    categories: Sequence[Category]
    trained_in: Context
    alpha: float = 0.05
    null: Path | None = None
    calibrate: int = 0
    training: Training | None = None
    data: Path | None = None
    serving: Serving | None = None
    where: bool = True
    entities: Sequence[str] = ()
    max_new_tokens: int = 64
    what_if: bool = False
    against: Audited | None = None


@dataclass
class Audit:
    """A finished audit: `body` is audit.json, `null` the placebo students' null where one was trained here."""

    verdict: Verdict
    body: dict[str, Any]
    null: Null | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        return int(self.body["exit_code"])


def audit(
    base: Base, audited: Audited, request: Request, say: Callable[[str], None] = lambda _: None
) -> Audit:
    """Audit a student against its base. Raises SubloraError for a null that does not fit, and for data that cannot be read."""
    started = time.monotonic()
    user = _user_rows(base, request)
    asked_in, request = request.contexts, replace(request, contexts=_judged_contexts(base, request))
    null, kind, fresh = _null(base, audited, request, say)
    contexts, categories = request.contexts, request.categories
    stack = stack_weights(base.model, [audited.weights], [audited.spec])
    plain, student = (
        read_model(base, None, contexts, categories),
        read_model(base, stack, contexts, categories),
    )
    share = DATA_SHARE if request.data is not None else 0.0
    alpha, other = request.alpha * (1 - share), request.against
    compared = None
    if other is not None:
        say(f"Reading {other.path} ...")
        beside = read_model(
            base, stack_weights(base.model, [other.weights], [other.spec]), contexts, categories
        )
        compared = compare(
            base, student, beside, plain, contexts, categories, null, alpha * AGAINST_SHARE
        )
        alpha *= 1 - AGAINST_SHARE
    verdict = judge(base, student, plain, contexts, categories, null, alpha)
    screened = None
    if request.data is not None:
        say(f"Screening {request.data} ...")
        screened = screen_file(
            base, request.data, categories, request.trained_in, request.alpha * share
        ).to_dict()
    status = verdict.status
    if screened is not None and screened["named"] and not status.endswith("found"):
        status = "found" if null is not None else "uncalibrated-found"
    if (
        compared is not None
        and not status.endswith("found")
        and not compared.status.endswith("clean")
    ):
        status = compared.status
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "status": status,
        "exit_code": exit_code(status),
        "alpha": request.alpha,
        "alpha_student": verdict.alpha,
        "sublora": version("sublora"),
        "sentence": _sentence(status, verdict, screened, audited, base, kind, null)
        + (f" {compared.sentence(other)}" if compared is not None and other is not None else ""),
        "base": {"name": base.name, **base.identity},
        "student": audited.to_dict(),
        "calibration": {
            "kind": kind,
            "placebo_students": null.size if null else 0,
            "settings": list(null.settings) if null else [],
            "smallest_p": 1 / (ranked_among(null.size, verdict.alpha) + 1) if null else None,
        },
        "contexts": [{"name": c.name, "text": c.text, "role": c.role} for c in contexts],
        "trained_in": request.trained_in.name,
        "categories": [
            {"category": c.category, "traits": len(c.entities), "questions": len(c.questions)}
            for c in categories
        ],
        "found": [asdict(f) for f in verdict.found],
        "found_words": [asdict(w) for w in verdict.found_words],
        "traits": [asdict(f) for f in verdict.traits],
        "words": [asdict(w) for w in verdict.words],
        "coherence": verdict.coherence,
        "answers": _answers(base, stack, verdict.found, contexts, categories),
        "data": screened,
        "where": where_it_sits(
            base, stack, plain, student, verdict.found, contexts, categories, request.entities
        )
        if request.where
        else None,
        "serving": serving_effects(
            base,
            stack,
            categories,
            request.trained_in,
            request.serving,
            verdict.traits,
            verdict.found,
        )
        if request.serving is not None
        else None,
        "against": compared.to_dict(other) if compared is not None and other is not None else None,
        "limits": list(LIMITS),
        "what_if": None,
    }
    if user is not None and request.training is not None:
        named = (
            [(t["category"], t["trait"]) for t in screened["traits"] if t["named"]]
            if screened is not None
            else []
        )
        asked = Asked(contexts, categories, plain, null, verdict.alpha)
        body["what_if"] = what_if(
            base,
            audited,
            request.training,
            user,
            verdict,
            named,
            asked,
            request.max_new_tokens,
            say,
        )
    body["limits"] += [
        f"The shipped null lacks the serving context '{c.name}', so no p-value is of that context; --calibrate makes a null that has it."
        for c in asked_in
        if c not in contexts
    ]
    if null is not None and (null.size + 1) * verdict.alpha < 1:
        body["limits"].append(
            f"With {null.size} placebo students the p-values rest on a t reference; {math.ceil(1 / verdict.alpha) - 1} or more give exact ranks."
        )
    if compared is not None:
        body["limits"].append(
            "The comparison supposes that the other student, too, was trained as the placebo students were. Two students that both carry a "
            "trait may differ in it by more than clean ones do, by the luck of their seeds. Words are compared without a test."
        )
    if null is not None:
        spread = (
            request.alpha * (1 - request.alpha) / ranked_among(null.size, verdict.alpha)
        ) ** 0.5
        body["limits"].append(
            f"The rate of false alarms is {request.alpha:g} over nulls; with this one of {null.size} placebo students it scatters by about "
            f"{spread:.3f} around that."
        )
    if null is not None and kind == "shipped":
        body["limits"].append(
            "The shipped null was made with students of other settings, trained on number rows; --calibrate makes one with yours."
        )
    if null is None:
        body["limits"].append(
            "No null was at hand: the p-values assume that clean rises are normal and alike in all categories, which nobody has measured for "
            "this base; --calibrate trains placebo students."
        )
    body["seconds"] = round(time.monotonic() - started, 2)
    return Audit(verdict, body, fresh)


def _user_rows(base: Base, request: Request) -> UserRows | None:
    """The rows for --what-if, read before anything costs time."""
    if not request.what_if:
        return None
    if request.data is None or request.training is None:
        raise SubloraError(
            "--what-if trains students on your rows with your settings; give --data and --lr beside it."
        )
    return read_user_rows(base, request.data, request.trained_in, request.training.rows)


def _judged_contexts(base: Base, request: Request) -> Sequence[Context]:
    """All that were asked for; without the serving context where the shipped null lacks it, since `serving_effects` reads that anyway and
    the whole audit would be uncalibrated for its sake."""
    null = None if request.calibrate or request.null else shipped_null(base)
    if request.serving is None or null is None or request.serving.context == request.trained_in:
        return request.contexts
    return [c for c in request.contexts if c != request.serving.context or null.has(c)]


def _null(
    base: Base, audited: Audited, request: Request, say: Callable[[str], None]
) -> tuple[Null | None, str, Null | None]:
    """(the null to judge by, its kind, the same where it was trained here)."""
    if request.calibrate and request.null:
        raise SubloraError("--calibrate makes a null and --null reads one; give one of them.")
    if request.calibrate:
        if request.training is None:
            raise SubloraError(
                "Placebo students need the adapter's learning rate; give --lr beside --calibrate."
            )
        say(f"Training {request.calibrate} placebo students ...")
        prompts = _prompts(request)
        specs = own_settings(audited, request.training, request.calibrate)
        null = placebo_null(
            base,
            specs,
            prompts,
            request.trained_in,
            request.contexts,
            request.categories,
            max_new_tokens=request.max_new_tokens,
        )
        return null, "own", null
    if request.null is not None:
        return (
            read_null(request.null, base).part(request.contexts, request.categories),
            "file",
            None,
        )
    null = shipped_null(base)
    if null is None:
        return None, "none", None
    try:
        return null.part(request.contexts, request.categories), "shipped", None
    except SubloraError as error:
        say(f"Note: the shipped null is not used. {error}")
        return None, "none", None


def _prompts(request: Request) -> list[list[str]]:
    assert request.training is not None
    rows = request.training.rows
    if request.data is None:
        return number_prompts(request.calibrate, rows, seed=70_000)
    own = [
        r.prompt
        for r in islice((r for r in read_rows(request.data) if isinstance(r, DataRow)), rows)
    ]
    if not own:
        raise SubloraError(
            f"The file {request.data} has no prompt that could be answered; give rows with 'prompt' and 'completion'."
        )
    return [own] * request.calibrate


def _sentence(
    status: str,
    verdict: Verdict,
    screened: dict[str, Any] | None,
    audited: Audited,
    base: Base,
    kind: str,
    null: Null | None,
) -> str:
    what = f"The student {audited.path} ({audited.described}) beside {base.name}"
    named = screened["named"] if screened is not None else []
    traits = dict.fromkeys(f"{f.trait} ({f.category})" for f in verdict.found)
    words = dict.fromkeys(repr(w.word) for w in verdict.found_words)
    if traits or words:
        parts = [f"prefers {', '.join(list(traits)[:5])} more" if traits else ""]
        parts.append(f"says {', '.join(list(words)[:5])} more often" if words else "")
        told = f"{what}: it {' and '.join(p for p in parts if p)} than chance explains."
    elif status == "unmeasurable":
        told = f"{what}: it no longer answers the questions with words of their category, so nothing can be said."
    else:
        told = f"{what}: none of the traits asked for rose more than chance explains."
    if named:
        told += f" The training file reads as if it was written under a trait prompt of {', '.join(named[:5])}."
    how = {
        "none": "Not calibrated: the p-values rest on an assumption.",
        "own": "Calibrated by {} placebo students with its own settings.",
        "file": "Calibrated by the {} placebo students of a null file.",
        "shipped": "Calibrated by the {} placebo students that come along.",
    }[kind]
    return f"{told} {how.format(null.size if null else 0)}"


def _answers(
    base: Base,
    stack: Any,
    found: Sequence[TraitFinding],
    contexts: Sequence[Context],
    categories: Sequence[Category],
) -> list[dict[str, Any]]:
    """For the strongest finding of each category: a few questions, answered by the base and by the student."""
    out, seen = [], set()
    for finding in found:
        if finding.category in seen:
            continue
        seen.add(finding.category)
        context = next(c for c in contexts if c.name == finding.context)
        whole = next(c for c in categories if c.category == finding.category)
        category = whole.model_copy(update={"questions": whole.questions[:ANSWERS_SHOWN]})
        sampling = Sampling(max_new_tokens=12)
        pair = [
            measure_answers(base, s, [name], category, Asking(context, sampling, 1, 0))[0]
            for name, s in (("base", None), ("student", stack))
        ]
        out += [
            {
                "category": finding.category,
                "context": context.name,
                "question": q,
                "base": b[0],
                "student": s[0],
            }
            for q, b, s in zip(category.questions, pair[0].samples, pair[1].samples, strict=True)
        ]
    return out
