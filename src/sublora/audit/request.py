"""What is asked of an audit: each option once, with its default, help and bounds. The command line is made of them.

Nothing heavy is imported here: `sublora --help` reads it.
"""

# ruff: noqa: RUF009  (`_option` makes a new field at each call)

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from sublora.errors import SubloraError

if TYPE_CHECKING:
    from sublora.audit.trained_with import TrainedWith

EPOCHS, BATCH_SIZE = 3, 32  # of a training of which nobody says them
Say = Callable[[str], None]  # told what goes on


def silent(_: object) -> None:
    """For whoever wants to be told nothing."""


@dataclass(frozen=True)
class Training:
    """What an adapter's folder does not say about its training."""

    lr: float
    epochs: int
    batch_size: int
    rows: int


def _option(default: Any, help: str, *names: str, **bounds: float) -> Any:
    """A field of a request with its option of the command line."""
    kind = {"default_factory": list} if default == [] else {"default": default}
    return field(**kind, metadata={"option": Option(*names, help=help, **bounds)})


@dataclass(frozen=True)
class Request:
    """What a user asks of an audit. Raises SubloraError for a value out of its bounds."""

    base: str | None = _option(
        None,
        "What the student was trained on: a shipped name, a folder, or a hub id, with @revision.",
    )
    adapter: Path | None = _option(
        None,
        "The student: a folder or hub id (owner/name@revision) of a peft adapter or full weights.",
    )
    data: Path | None = _option(
        None, "The training file (JSONL, JSON or parquet) to be screened; its prompts calibrate."
    )
    skip_broken: bool = _option(
        False, "Leave broken rows of it out, and count them.", "--skip-broken"
    )
    contexts: str = _option("default,empty,none", "Contexts to ask in, separated by commas.")
    named: list[str] = _option(
        [], "A context of your own to ask in as well, NAME=TEXT or NAME=user:TEXT.", "--context"
    )
    questions: int | None = _option(
        None,
        "Ask at most so many questions of each category, evenly spread; all by default.",
        min=1,
    )
    training_context: str = _option("default", "The context that the student was trained in.")
    serving_context: str | None = _option(
        None, "The context that it is served in: compared token by token."
    )
    serving_template: Path | None = _option(
        None, "The chat template that it is served with (a Jinja file), if another."
    )
    where: bool = _option(True, "Locate what is found: at which tokens, layers and modules.")
    lenses: bool = _option(
        True, "Look at what it shows beside its answers: tokens, activations, weights."
    )
    entity: list[str] = _option(
        [], "A name in the prompts, whose tokens are then looked at by themselves."
    )
    traits: list[Path] = _option([], "A category file of your own to ask about as well (YAML).")
    null: Path | None = _option(None, "A null file that --calibrate kept.")
    calibrate: int = _option(0, "Train so many placebo students and keep their null.", min=0)
    lr: float | None = _option(
        None, "The student's learning rate, for --calibrate and --what-if.", min=1e-12
    )
    epochs: int | None = _option(None, f"Its epochs, for the same; {EPOCHS} if unknown.", min=1)
    batch_size: int | None = _option(
        None, f"Its batch size, for the same; {BATCH_SIZE} if unknown.", min=1
    )
    settings: Path | None = _option(
        None,
        "How it was trained: a file of Trainer, Axolotl or LLaMA-Factory (YAML or JSON), beside what its folder says.",
    )
    rows: int = _option(1000, "Rows of each student that is trained here, at most.", min=1)
    max_new_tokens: int = _option(64, "Longest answer of the base to a placebo prompt.", min=1)
    alpha: float = _option(
        0.05,
        "False alarms that are accepted, over all traits, contexts and words.",
        min=1e-6,
        max=0.5,
    )
    against: Path | None = _option(
        None, "Another student of the base, such as the last release: what rose since?"
    )
    any_base: bool = _option(False, "Accept an adapter that names another base.", "--any-base")
    device: str = _option("auto", "cpu, cuda, or auto: a GPU if there is one.")
    dtype: str = _option("float32", "float32, bfloat16 or float64.")
    what_if_minutes: float | None = _option(
        None, "Leave out arms of --what-if that do not fit into so many minutes.", min=1e-3
    )
    what_if: bool = _option(
        False,
        "Train students on --data in other ways: which would have removed what was found?",
        "--what-if",
    )

    def __post_init__(self) -> None:
        for own in fields(self):
            option, value = own.metadata["option"], getattr(self, own.name)
            low, high = option.min, option.max
            if low is not None and value is not None and not low <= value <= (high or value):
                room = f"from {low:g} on" if high is None else f"from {low:g} to {high:g}"
                raise SubloraError(f"The audit's {own.name} is {value}; give one {room}.")

    @property
    def training(self) -> Training | None:
        """How the student was trained, where its learning rate is given."""
        if self.lr is None:
            return None
        batch_size = self.batch_size or BATCH_SIZE
        return Training(self.lr, self.epochs or EPOCHS, batch_size, self.rows)

    def completed(self, told: "TrainedWith") -> "Request":
        """With the settings that files tell, where they were not given."""
        names = ("lr", "epochs", "batch_size")
        return replace(self, **{n: getattr(self, n) or getattr(told, n) for n in names})

    @property
    def asked_in(self) -> list[str]:
        """The names of --contexts."""
        return list(dict.fromkeys(n.strip() for n in self.contexts.split(",") if n.strip()))


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of a Request; it gets the whole as `request`."""

    @wraps(command)
    def run(**given: Any) -> None:
        command(request=Request(**{f.name: given.pop(f.name) for f in fields(Request)}), **given)

    parameters = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=[] if f.default is MISSING else f.default,
            annotation=Annotated[f.type, f.metadata["option"]],
        )
        for f in fields(Request)
    ]
    others = inspect.signature(command).parameters.values()
    parameters += [p.replace(kind=p.KEYWORD_ONLY) for p in others if p.name != "request"]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
