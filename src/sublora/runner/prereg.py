"""Pre-registration: a file that fixes a run before it is made, and the check that a run is the one that a file fixes.

The last line of the file is the SHA-256 of all lines above it, so that any edit is seen, by this program and by `sha256sum`. When it was
written is what the file says; that it is true is for whoever keeps the file, such as a commit before the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sublora.analysis.claims import Claim
from sublora.analysis.page import Registration
from sublora.errors import SubloraError, reason
from sublora.experiments.claims import load_claims
from sublora.experiments.experiment import Experiment
from sublora.experiments.kinds import kind_named, open_recipe
from sublora.models.base import model_source
from sublora.models.known import Known
from sublora.runner.manifest import now
from sublora.runner.rates import known_identity, read_rates
from sublora.steps.step import Step
from sublora.store import Store, write_atomic
from sublora.store.ids import kind_of
from sublora.store.yaml_file import parse

HEAD = (
    "# What is going to be run and judged. Commit this file before `sublora run --prereg` and do not edit it:\n"
    "# the last line is the sha256 of the lines above it.\n"
)
SEAL = "sha256: "
NEW = "write a new file with `sublora prereg` if that is what you mean to run"


class Planned(BaseModel):
    """The artifacts of a kind: how many, and the SHA-256 of their names, sorted, a line each."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int
    sha256: str


class Fixed(BaseModel):
    """What the file says. `asked`: the words of the command; `model`: the identity of the main model; `plan`: by kind of artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prereg: int = 1
    written: str
    sublora: str
    asked: dict[str, Any]
    traits: list[str]
    seeds: dict[str, Any]
    model: dict[str, str]
    plan: dict[str, Planned]
    recipe: dict[str, Any]
    claims: list[dict[str, Any]]


@dataclass(frozen=True)
class Prereg:
    """A file that was read: its name, its hash and what it fixes."""

    name: str
    sha256: str
    fixed: Fixed


def write_prereg(asked: Mapping[str, Any], out: Path | None, store: Store) -> Path:
    """Write what a command is going to run, without running it; `asked` are the arguments of `open_recipe`. Returns the file's path.

    Raises SubloraError where the file is there already, or the identity of the model is not known here.
    """
    recipe = open_recipe(**asked)
    path = out or Path(f"prereg-{recipe.name}.yaml")
    if path.exists():
        raise SubloraError(
            f"The file {path} is there already and is not overwritten; choose another name with -o."
        )
    if not path.parent.is_dir():
        raise SubloraError(f"There is no folder {path.parent} for {path.name}; make it first.")
    known = _known(recipe, store)
    values = recipe.model_dump(mode="json")
    fixed = Fixed(
        written=now(),
        sublora=version("sublora"),
        asked={k: v for k, v in asked.items() if v},
        traits=list(values.get("traits") or []),
        seeds=_seeds(values),
        model=dict(known.identity),
        plan=_planned(recipe.plan(known)),
        recipe=values,
        claims=_claims(recipe),
    )
    body = yaml.safe_dump(fixed.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    text = HEAD + body
    write_atomic(path, f"{text}{SEAL}{_sha256(text)}\n")
    return path


def read_prereg(path: Path) -> Prereg:
    """Raises SubloraError for a file that cannot be read, is none, or was changed since it was written."""
    try:
        text = path.read_text("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error)
        raise SubloraError(f"The prereg file {path} cannot be read ({why}).") from None
    body, mark, seal = text.rpartition(f"\n{SEAL}")
    if not mark or not body.startswith(HEAD[:20]):
        raise SubloraError(f"{path} is no prereg file; `sublora prereg RECIPE` writes one.")
    if _sha256(body + "\n") != seal.strip():
        raise SubloraError(
            f"The prereg file {path} was changed after it was written: its sha256 is no longer the one in its last line; take it as "
            "it was committed, or write a new one."
        )
    try:
        return Prereg(path.name, seal.strip(), Fixed.model_validate(parse(body)[1]))
    except (yaml.YAMLError, ValidationError):
        raise SubloraError(
            f"The prereg file {path} is of another version of sublora; write a new one."
        ) from None


def registered_recipe(prereg: Prereg, given: Mapping[str, Any]) -> Experiment:
    """The recipe that the file fixes; `given` are arguments of `open_recipe` beside it, which have to agree.

    Raises SubloraError naming the first value, or the claim, that differs.
    """
    given = {k: v for k, v in given.items() if v}
    fixed, own = prereg.fixed, prereg.fixed.recipe
    if given:
        sets = [*fixed.asked.get("sets", []), *given.get("sets", [])]
        asked = open_recipe(**{**fixed.asked, **given, "sets": sets})
        _same(prereg, "the recipe", own, asked.model_dump(mode="json"))
    try:
        recipe = kind_named(own.get("kind"), prereg.name).model_validate(own)
    except ValidationError:
        raise SubloraError(
            f"The recipe in {prereg.name} is of sublora {fixed.sublora}, which this one ({version('sublora')}) does not read; run it "
            "with that one, or write a new file."
        ) from None
    _same(prereg, "the recipe", own, recipe.model_dump(mode="json"))
    before, today = ({c["id"]: c for c in some} for some in (fixed.claims, _claims(recipe)))
    _same(prereg, "the claims", before, today)
    return recipe


def check_run(prereg: Prereg, known: Known, steps: Sequence[Step]) -> list[str]:
    """Whether model and plan of a run are those of the file. Returns what is to be noted; raises SubloraError naming what differs."""
    fixed, here = prereg.fixed, version("sublora")
    _same(prereg, "the model", fixed.model, dict(known.identity))
    plan = _planned(steps)
    other = [k for k in fixed.plan | plan if fixed.plan.get(k) != plan.get(k)]
    if other:
        raise SubloraError(
            f"The run differs from {prereg.name} in its artifacts of kind {other[0]}: sublora {here} plans others than sublora "
            f"{fixed.sublora} did, though recipe, claims and model agree, so the code or a file that the recipe names has changed; {NEW}."
        )
    if here == fixed.sublora:
        return []
    return [
        f"{prereg.name} was written by sublora {fixed.sublora} and this is {here}; its claims and artifacts are the same."
    ]


def registration(prereg: Prereg, steps: Sequence[Step], store: Store) -> Registration:
    """How the file and what is made stand in time: by students, or by all artifacts of a run without students."""
    names = list(dict.fromkeys(name for step in steps for name in step.makes))
    students = [name for name in names if kind_of(name) == "student"]
    made = sorted(filter(None, map(store.created, students or names)))
    written = prereg.fixed.written
    return Registration(
        file=prereg.name,
        sha256=prereg.sha256,
        written=written,
        what="student" if students else "artifact",
        planned=len(students or names),
        before=sum(when <= written for when in made),  # times are in whole seconds
        first_made=made[0] if made else None,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known(recipe: Experiment, store: Store) -> Known:
    name = recipe.model_name
    if name is None or Path(model_source(name)).is_dir():
        return recipe.known()
    identity = known_identity(read_rates(store), name, recipe.loading()["dtype"])
    if identity is None:
        raise SubloraError(
            f"The model {name} is not on this machine and no run has loaded it, so its hash is not known; "
            "fetch it (`sublora fetch`), or give a folder with its files."
        )
    return recipe.known(identity)


def _planned(steps: Sequence[Step]) -> dict[str, Planned]:
    kinds: dict[str, set[str]] = {}
    for name in (name for step in steps for name in step.makes):
        kinds.setdefault(kind_of(name), set()).add(name)
    return {
        kind: Planned(count=len(names), sha256=_sha256("".join(f"{n}\n" for n in sorted(names))))
        for kind, names in sorted(kinds.items())
    }


def _claims(recipe: Experiment) -> list[dict[str, Any]]:
    return [_claim(claim) for claim in load_claims() if recipe.name in claim.recipes]


def _claim(claim: Claim) -> dict[str, Any]:
    """All that its verdict hangs on, defaults included."""
    part = claim.contrast or claim.rule
    entry = {"id": claim.id, "statement": claim.statement, "source": claim.source}
    entry |= {"threshold_from": claim.threshold_from, "no_leak": claim.no_leak}
    entry |= {
        "unique_rows": claim.unique_rows,
        "test": claim.test,
        "thresholds": claim.thresholds,
        "rule": part.model_dump(),
    }
    return json.loads(json.dumps(entry))


def _seeds(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Every seed of a recipe by its place."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("seed", "seeds"):
            found[place + key] = value
        elif isinstance(value, Mapping):
            found |= _seeds(value, f"{place}{key}.")
    return found


def _same(prereg: Prereg, what: str, before: Mapping[str, Any], today: Mapping[str, Any]) -> None:
    """Raises SubloraError naming the first place in which the two differ."""
    for place in (*before, *(key for key in today if key not in before)):
        old, new = before.get(place), today.get(place)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _same(prereg, f"{what}, {place}", old, new)
        elif old != new:
            raise SubloraError(
                f"The run differs from {prereg.name} in {what}, {place}: it has {_said(new)}, the file has {_said(old)}; {NEW}."
            )


def _said(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
