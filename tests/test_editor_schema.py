"""The JSON Schema for editors: the shipped YAML fits it, and what is misspelt does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from command import sublora
from sublora.experiments.document import shipped_recipes
from sublora.experiments.editor_schema import editor_schema
from sublora.experiments.written import read_file

SCHEMA = editor_schema()
FILES = [*shipped_recipes().values()]
FILES += sorted((FILES[0].parent.parent / "presets").glob("*.yaml"))


def fits(values: dict[str, Any]) -> bool:
    return Draft202012Validator(SCHEMA).is_valid(values)


@pytest.mark.parametrize("path", FILES, ids=[f"{f.parent.name}-{f.stem}" for f in FILES])
def test_shipped_files_fit_and_a_misspelt_key_does_not(path: Path) -> None:
    values = json.loads(json.dumps(read_file(path).values))
    assert fits(values), next(Draft202012Validator(SCHEMA).iter_errors(values)).message
    assert not fits(values | {"titel": "x"})
    for section in ("data", "train", "measure"):
        if isinstance(values.get(section), dict):
            assert not fits(values | {section: values[section] | {"epoch": 2}})


def test_a_wrong_value_does_not_fit() -> None:
    assert fits({"train": {"epochs": 2}}) and not fits({"train": {"epochs": "two"}})
    assert fits({"kind": "judged"}) and not fits({"kind": "juged"})


def test_the_command_prints_it() -> None:
    assert json.loads(sublora("schema").out) == SCHEMA
