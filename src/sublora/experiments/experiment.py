"""What every experiment is: a question that names the steps it takes, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sublora.analysis.effects import Effect
from sublora.analysis.frame import Shown
from sublora.analysis.page import Chart, Section, Tile
from sublora.models.base import Base, known_shape, model_source
from sublora.models.known import Known, known_model
from sublora.steps.step import Step
from sublora.store import Store


@dataclass(frozen=True)
class Findings:
    """What an experiment came to.

    The page shows `charts`, or `sections` with figures and tables of their own, and `appendix` after
    the verdicts; `first_line` says whether the controls hold, `note` stands below the tiles, `how` says how the numbers were made. `files` are
    further files of the run's folder by their names, `manifest` further entries of run.json, and
    `said` is printed at the end of the run.
    """

    effects: tuple[Effect, ...] = ()
    charts: tuple[Chart, ...] = ()
    tiles: tuple[Tile, ...] = ()
    how: str = ""
    first_line: str = ""
    note: str = ""
    sections: tuple[Section, ...] = ()
    appendix: tuple[Section, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""


class Experiment(Shown, BaseModel):
    """A recipe of any kind. A new experiment is one file with a subclass, and a line in `experiments.kinds`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$")
    kind: str
    title: str
    summary: str
    caveat: str | None = None
    level: float = Field(
        0.05, gt=0, lt=0.5, description="false calls allowed over all tested estimates of a group"
    )

    def _line(self) -> str:
        return ", ".join([self.name, *self.out_words])

    def _pairs(self) -> Mapping[str, Any]:
        varied = dict(line.split(": ", 1) for line in self.varied() if ": " in line)
        own = {"recipe": self.name, "title": self.title, "model": self.model_name or "none"}
        return {**own, "what": self.sentence, **varied}

    @property
    def model_name(self) -> str | None:
        """The main language model, if there is one: it is loaded before any work, and checked."""
        return getattr(self, "model", None)

    def loading(self) -> dict[str, str | None]:
        """How models are loaded: `dtype`, and the `revision` of the main one."""
        return {"dtype": "float32", "revision": None}

    def check_places(self, place: Callable[[tuple], str]) -> None:
        """Raises SubloraError for values that the files of this machine show to be impossible.

        `place` gives the line or flag that says a value, by the keys that lead to it.
        """

    def goes_on(self, before: Experiment) -> bool:
        """Whether the folder of a run of the recipe `before` can go on as one of this."""
        return before == self

    @property
    def out_words(self) -> list[str]:
        """What tells its runs apart, for the default folder."""
        return []

    @property
    def sentence(self) -> str:
        """What is done, in one sentence."""
        raise NotImplementedError

    def plan(self, known: Known) -> list[Step]:
        """All steps; where several can be made, the first of the list goes first. Makes nothing."""
        raise NotImplementedError

    def findings(self, store: Store, known: Known) -> Findings:
        """Read what the steps made."""
        raise NotImplementedError

    def so_far(self, store: Store, known: Known) -> Sequence[Effect]:
        """Effects of what is made already, while the rest is not; none where an experiment has none before its end."""
        return ()

    def verdicts(self, findings: Findings, store: Store, known: Known) -> list[dict[str, Any]]:
        """The claims about this recipe, judged."""
        from sublora.analysis.claims import judge
        from sublora.experiments.claims import load_claims

        judged = judge(load_claims(), self.name, findings.effects, alpha=self.level)
        return [v.to_dict() for v in judged]

    def checks(self, base: Base, known: Known) -> list[str]:
        """Warnings about the loaded model. Raises SubloraError where it cannot be used."""
        return []

    def manifest(self, base: Base | None, known: Known) -> dict[str, Any]:
        """Further entries of run.json that are known before the work."""
        return {}

    def varied(self) -> list[str]:
        """What is varied, a line each, for `sublora plan`."""
        return []

    def design(self) -> list[str]:
        """What its design can find and what it cannot settle, a sentence each, for `sublora plan`."""
        return []

    def bill(self, known: Known, missing: Sequence[Step]) -> str | None:
        """What others will be asked for the missing steps, and what that costs."""
        return None

    def known(self, identity: Mapping[str, str] | None = None) -> Known:
        """What is known of the main model without loading it.

        Where its files are not on this machine, `identity` says what an earlier run found.
        """
        name = self.model_name
        if name is None:
            return NOTHING
        if identity is not None and not Path(model_source(name)).is_dir():
            return Known(name, identity, known_shape(name), device="cuda")
        return known_model(name, self.loading()["dtype"] or "float32")


NOTHING = Known("", {})
