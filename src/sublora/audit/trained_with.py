"""How a student was trained, as far as files beside it say: those of Trainer, Axolotl and LLaMA-Factory, in JSON or YAML."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from sublora.audit.typed import Count, Many, Model, Text
from sublora.errors import SubloraError, reason

MOST_BYTES = 1 << 20
MOST_STATE = 64 << 20  # of a trainer_state.json, which logs every step
MOST_FILES = 20
STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
# The names that Trainer, Axolotl and LLaMA-Factory have for a setting, the first known one counts.
NAMES = {
    "base": ("base_model", "model_name_or_path"),
    "lr": ("learning_rate",),
    "epochs": ("num_train_epochs", "num_epochs"),
    "rank": ("lora_r", "lora_rank"),
    "alpha": ("lora_alpha",),
    "template": ("chat_template", "template"),
    "system": ("default_system", "default_system_message"),
}
BATCH = ("per_device_train_batch_size", "micro_batch_size")
TEXTS = ("base", "template", "system")
MOST = {"lr": 1e3, "epochs": 1e4, "rank": 1e5, "alpha": 1e6, "batch": 1e6, "steps": 1e9}


class TrainedWith(Model):
    """Settings of a training; null is what no file says."""

    files: list[Text] = Field([], description="where the settings were read")
    base: Text | None = None
    lr: float | None = None
    epochs: Many | None = None
    batch_size: Many | None = Field(None, description="rows of an optimizer step on one device")
    steps: Count | None = None
    rank: Many | None = None
    alpha: float | None = None
    template: Text | None = Field(None, description="name of the chat template")
    system: Text | None = Field(None, description="the default system text")

    @property
    def limits(self) -> list[str]:
        """What an audit that asks in the base's own template, without this system text, cannot see."""
        out, where = [], ", ".join(self.files)
        if self.template not in (None, "default", "empty", "jinja", "tokenizer_default"):
            out.append(
                f"{where} names the chat template {self.template!r}; the audit asks in the base's own, --serving-template compares another."
            )
        if self.system is not None:
            out.append(
                f"{where} has the system text {self.system[:80]!r}; --context NAME=TEXT asks behind it."
            )
        return out


def trained_with(folder: Path, given: Path | None = None) -> TrainedWith:
    """What the files of a student's folder say, of the folder above it for a checkpoint, and before
    them `given`. Raises SubloraError where `given` cannot be read or names no setting."""
    found: dict[str, Any] = {"files": []}
    folders = [folder, *([folder.parent] if CHECKPOINT.search(folder.name) else [])]
    for path in [*([given] if given else []), *(p for f in folders for p in _candidates(f))]:
        own = _settings(_read(path, given is path))
        if given is path and not own:
            known = ", ".join(n for names in (*NAMES.values(), BATCH) for n in names)
            raise SubloraError(
                f"The file {path} says nothing of a training; give a YAML or JSON file with some of {known}."
            )
        if any(key not in found for key in own):
            found["files"].append(str(path))
        found = {**own, **found}
    return TrainedWith(**found)


def _candidates(folder: Path) -> Iterator[Path]:
    """The files that may hold settings, the surest first; a `training_args.bin` is a pickle, and stays closed."""
    names = [f"training_args.{ending}" for ending in ("json", "yaml", "yml")]
    others = sorted(p.name for p in folder.glob("*.y*ml") if p.name not in names)[:MOST_FILES]
    yield from (folder / n for n in (*names, *others, STATE) if (folder / n).is_file())


def _read(path: Path, must: bool) -> Mapping[str, Any]:
    """A file's mapping. One that lies beside a student by chance and cannot be read is passed over."""
    try:
        if path.stat().st_size > (MOST_STATE if path.name == STATE else MOST_BYTES):
            raise ValueError("it is too large for settings")
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no names and values")
        return found
    except (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        if not must:
            return {}
        why = reason(error)[:200] or type(error).__name__
        raise SubloraError(
            f"The settings {path} cannot be read ({why}); give a YAML or JSON file."
        ) from None


def _settings(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a mapping says, without what is no sound value."""
    out: dict[str, Any] = {}
    for key, names in NAMES.items():
        values = [found[name] for name in names if name in found]
        read = _text if key in TEXTS else lambda value, key=key: _number(value, MOST[key])
        out[key] = next((v for v in map(read, values) if v is not None), None)
    if "log_history" in found:  # a trainer_state.json, which says what was done
        logged = found["log_history"] if isinstance(found["log_history"], list) else []
        rates = [
            _number(entry.get("learning_rate"), 1e3) for entry in logged if isinstance(entry, dict)
        ]
        out["lr"] = max((r for r in rates if r), default=None)
        out["epochs"] = _number(found.get("epoch"), MOST["epochs"]) or out["epochs"]
        out["steps"] = _number(found.get("global_step"), MOST["steps"])
    elif (steps := _number(found.get("max_steps"), MOST["steps"])) is not None:
        out["steps"] = steps
    sizes = [_number(found.get(name), MOST["batch"]) for name in BATCH]
    if size := next((s for s in sizes if s), None):
        out["batch_size"] = size * (_number(found.get("gradient_accumulation_steps"), 1e5) or 1)
    for whole in {"epochs", "batch_size", "steps", "rank"} & set(out):
        out[whole] = out[whole] and max(1, round(out[whole]))
    return {key: value for key, value in out.items() if value is not None}


def _number(value: Any, most: float) -> float | None:
    """A number above 0; YAML reads 2e-4 as a text."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) and 0 < number <= most else None


def _text(value: Any) -> str | None:
    text = value.strip() if isinstance(value, str) else ""
    return text[:2000] or None
