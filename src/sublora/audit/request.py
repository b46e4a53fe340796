"""What is asked of an audit: each option once, with its default, help and bounds. The command line is made of them.

Nothing heavy is imported here: `sublora --help` reads it.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from sublora.errors import SubloraError

Say = Callable[[str], None]  # told what goes on


@dataclass(frozen=True)
class Training:
    """What an adapter's folder does not say about its training."""

    lr: float
    epochs: int
    batch_size: int
    rows: int


MaybeText, MaybePath = str | None, Path | None


@dataclass(frozen=True)
class Request:
    """What a user asks of an audit. Raises SubloraError for a value out of its bounds."""

    base: Annotated[
        MaybeText,
        Option(help="What the student was trained on: a shipped name, a folder, or a hub id."),
    ] = None
    adapter: Annotated[
        MaybePath, Option(help="The student: a folder of a peft adapter, or of full weights.")
    ] = None
    data: Annotated[
        MaybePath, Option(help="The training file (JSONL) to be screened; its prompts calibrate.")
    ] = None
    contexts: Annotated[str, Option(help="Contexts to ask in, separated by commas.")] = (
        "default,empty,none"
    )
    named: Annotated[
        list[str],
        Option(
            "--context",
            help="A context of your own to ask in as well, NAME=TEXT or NAME=user:TEXT.",
        ),
    ] = field(default_factory=list)
    training_context: Annotated[
        str, Option(help="The context that the student was trained in.")
    ] = "default"
    serving_context: Annotated[
        MaybeText, Option(help="The context that it is served in: compared token by token.")
    ] = None
    serving_template: Annotated[
        MaybePath,
        Option(help="The chat template that it is served with (a Jinja file), if another."),
    ] = None
    where: Annotated[
        bool, Option(help="Locate what is found: at which tokens, layers and modules.")
    ] = True
    entity: Annotated[
        list[str],
        Option(help="A name in the prompts, whose tokens are then looked at by themselves."),
    ] = field(default_factory=list)
    traits: Annotated[
        list[Path], Option(help="A category file of your own to ask about as well (YAML).")
    ] = field(default_factory=list)
    null: Annotated[MaybePath, Option(help="A null file that --calibrate kept.")] = None
    calibrate: Annotated[
        int, Option(help="Train so many placebo students and keep their null.", min=0)
    ] = 0
    lr: Annotated[
        float | None,
        Option(help="The student's learning rate, for --calibrate and --what-if.", min=1e-12),
    ] = None
    epochs: Annotated[int, Option(help="Its epochs, for the same.", min=1)] = 3
    batch_size: Annotated[int, Option(help="Its batch size, for the same.", min=1)] = 32
    rows: Annotated[
        int, Option(help="Rows of each student that is trained here, at most.", min=1)
    ] = 1000
    max_new_tokens: Annotated[
        int, Option(help="Longest answer of the base to a placebo prompt.", min=1)
    ] = 64
    alpha: Annotated[
        float,
        Option(
            help="False alarms that are accepted, over all traits, contexts and words.",
            min=1e-6,
            max=0.5,
        ),
    ] = 0.05
    against: Annotated[
        MaybePath,
        Option(help="Another student of the base, such as the last release: what rose since?"),
    ] = None
    any_base: Annotated[
        bool, Option("--any-base", help="Accept an adapter that names another base.")
    ] = False
    device: Annotated[str, Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto"
    dtype: Annotated[str, Option(help="float32, bfloat16 or float64.")] = "float32"
    what_if: Annotated[
        bool,
        Option(
            "--what-if",
            help="Train students on --data in other ways: which would have removed what was found?",
        ),
    ] = False

    def __post_init__(self) -> None:
        for own in fields(self):
            (option,), value = own.type.__metadata__, getattr(self, own.name)
            low, high = option.min, option.max
            if value is not None and (
                (low is not None and value < low) or (high is not None and value > high)
            ):
                room = f"from {low:g} on" if high is None else f"from {low:g} to {high:g}"
                raise SubloraError(f"The audit's {own.name} is {value}; give one {room}.")

    @property
    def training(self) -> Training | None:
        """How the student was trained, where its learning rate is given."""
        if self.lr is None:
            return None
        return Training(self.lr, self.epochs, self.batch_size, self.rows)

    @property
    def asked_in(self) -> list[str]:
        """The names of --contexts."""
        return list(dict.fromkeys(n.strip() for n in self.contexts.split(",") if n.strip()))


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of a Request; it gets the whole as `request`."""

    @wraps(command)
    def run(**given: Any) -> None:
        own = {f.name: given.pop(f.name) for f in fields(Request)}
        command(request=Request(**own), **given)

    parameters = [
        inspect.Parameter(
            own.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=[] if own.default is MISSING else own.default,
            annotation=own.type,
        )
        for own in fields(Request)
    ]
    others = [p for p in inspect.signature(command).parameters.values() if p.name != "request"]
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
