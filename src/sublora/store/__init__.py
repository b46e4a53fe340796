"""Artifacts on disk, shared by all runs. It knows of no model."""

from sublora.store.artifacts import Artifact, ArtifactCorrupt, Busy, Store, forget_verified
from sublora.store.files import NoRoom, held, write_atomic, write_json_atomic
from sublora.store.ids import artifact_id, canonical_json

__all__ = [
    "Artifact",
    "ArtifactCorrupt",
    "Busy",
    "NoRoom",
    "Store",
    "artifact_id",
    "canonical_json",
    "forget_verified",
    "held",
    "write_atomic",
    "write_json_atomic",
]
