"""The JSON Schema of recipes and presets, made from their classes, so that an editor completes and checks YAML files."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from sublora.experiments.chosen import CHOICES
from sublora.experiments.kinds import KINDS, kind_named

NULL = {"type": "null"}
# What a file may say besides its recipe's own keys; the presets of a recipe are parts of such a file.
BESIDES = {
    "extends": {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "a recipe, a preset, or a file beside this one; of a list, each over those before it",
    },
    "choose": {"type": "array", "items": {"enum": list(CHOICES)}},
    "measured": {"type": "object", "description": "what a run took: minutes, tflop"},
}


def editor_schema() -> dict[str, Any]:
    """JSON Schema (2020-12). Nothing is required, since a file may inherit all that it does not say, and null removes
    what it inherits, also what recipes of its own kind do not have."""
    models = {name: kind_named(name, name) for name in KINDS}
    refs, whole = models_json_schema([(m, "validation") for m in models.values()])
    definitions = _parts(whole["$defs"])
    kinds = {name: refs[model, "validation"]["$ref"] for name, model in models.items()}
    for ref in kinds.values():
        own = definitions[ref.rpartition("/")[2]]
        presets = {"type": "object", "additionalProperties": {"anyOf": [{"$ref": ref}, NULL]}}
        own["properties"] |= BESIDES | {"presets": presets}
    named = [
        {
            "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
            "then": {"$ref": ref},
        }
        for name, ref in kinds.items()
    ]
    unnamed = {"anyOf": [{"$ref": ref} for ref in kinds.values()]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of sublora, or a preset",
        "type": "object",
        "properties": {"kind": {"enum": list(KINDS)}},
        "allOf": named,
        "if": {"required": ["kind"]},
        "else": unnamed,
        "$defs": definitions,
    }


def _parts(schema: Any) -> Any:
    """A schema in which nothing is required, and every value may be null."""
    if isinstance(schema, list):
        return [_parts(inner) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    out = {}
    for key, inner in schema.items():
        if key in ("required", "discriminator") and not isinstance(inner, str):
            continue
        out["anyOf" if key == "oneOf" else key] = _parts(inner)
    if isinstance(found := out.get("properties"), dict):
        out["properties"] = {k: _or_null(v) for k, v in found.items()}
    if (more := out.get("additionalProperties")) is not None:
        out["additionalProperties"] = _or_null(more) if more else NULL
    return out


def _or_null(schema: Any) -> Any:
    return {"anyOf": [schema, NULL]}
