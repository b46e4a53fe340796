"""Whether a student was trained as the placebo students of a null were: which of its settings lie outside of theirs."""

from collections.abc import Iterator

from sublora.audit.audited import Audited
from sublora.audit.null import Null, text_of
from sublora.audit.request import Request
from sublora.models.chat import Context

MARGIN = 2.0  # by so much a number may lie beyond the placebo students' own


def outside(null: Null, audited: Audited, trained_in: Context, request: Request) -> Iterator[str]:
    """A sentence on each setting of the student that is outside of the null's. What nobody says of a
    student, such as its rate, is taken to be inside; `unsaid` names it."""
    grid, method = null.grid, "full" if audited.rank is None else "lora"
    if method not in grid.methods:
        kind = "a full fine-tune" if method == "full" else "a LoRA adapter"
        yield f"The student is {kind}, and no placebo student is."
    known = {"rank": audited.rank, "rate": request.lr, "epochs": request.epochs}
    known["steps"] = audited.trained_with.steps
    for name, value in known.items():
        low, high = getattr(grid, "lr" if name == "rate" else name)
        if value is not None and not low / MARGIN <= value <= high * MARGIN:
            yield f"Its {name} of {value:g} is far from the placebo students' {low:.2g} to {high:.2g}."
    if [trained_in.name, text_of(trained_in)] != list(grid.context):
        yield f"It was trained in the context '{trained_in.name}', the placebo students in '{grid.context[0]}'."


def unsaid(audited: Audited, request: Request) -> str | None:
    """A sentence on settings that nobody says, or None."""
    known = {"rate": request.lr, "epochs": request.epochs or audited.trained_with.steps}
    missing = " and ".join(name for name, value in known.items() if value is None)
    if not missing:
        return None
    return f"Its {missing} are not known, and taken to be as the placebo students'; give --lr and --epochs, or --settings."
