"""run.json: what a run is of, before and after; one schema for all kinds."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sublora.experiments.experiment import Experiment
from sublora.models.base import Base
from sublora.models.known import Known
from sublora.steps.step import Step

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest_of(
    recipe: Experiment, out: Path, base: Base | None, known: Known, steps: Sequence[Step]
) -> dict[str, Any]:
    """The entries that all kinds have, and those of the recipe's own."""
    kinds = [step.kind for step in steps for _ in step.makes]
    return {
        "schema": 1,
        "sublora": version("sublora"),
        "name": out.name,
        "kind": recipe.kind,
        "recipe": recipe.model_dump(mode="json"),
        "command": "",
        "sentence": recipe.sentence,
        "status": "running",
        "model": None if base is None else _model(recipe, base),
        "started": now(),
        "finished": None,
        "seconds": {},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "warnings": [],
        "counts": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        **recipe.manifest(base, known),
    }


def _model(recipe: Experiment, base: Base) -> dict[str, Any]:
    names = base.model.config.architectures or [type(base.model).__name__]
    return {
        "name": base.name,
        "architecture": names[0],
        "parameters": base.model.num_parameters(),
        **recipe.loading(),
        "weights_sha256": base.identity["weights"],
        "template_sha256": base.identity["template"],
        "tokenizer_sha256": base.identity["tokenizer"],
        "quantised": base.identity.get("quantised"),
        "organism": base.organism,
        "system_support": base.chat.system_support,
    }
