"""Artifacts on disk, shared by all runs. It knows of no model."""

# ruff: noqa: F401, what the package gives to others
from sublora.store.artifacts import (
    Artifact,
    ArtifactCorrupt,
    Busy,
    Store,
    forget_verified,
    store_root,
)
from sublora.store.files import NoRoom, held, write_atomic, write_json_atomic
from sublora.store.ids import artifact_id, canonical_json
