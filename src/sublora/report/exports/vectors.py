"""The steering vectors of a run as plain safetensors files, with a table of what they are."""

import shutil
from pathlib import Path

from sublora.analysis.tables import to_csv
from sublora.errors import SubloraError
from sublora.report.exports.answers import stored
from sublora.report.loaded import LoadedRun
from sublora.store import Store
from sublora.store.known_runs import known_runs


def export_vectors(run: LoadedRun, store: Store, out: Path) -> list[Path]:
    """Write ID.safetensors for each vector, with the tensor `values` (layers, width), and vectors.csv, which names them.

    Raises SubloraError for a run without vectors, and where the store has lost one or knows nothing of the run.
    """
    mine = [r.artifacts for r in known_runs(store) if r.folder == run.folder.absolute()]
    names = sorted(name for ids in mine for name in ids if name.startswith("vector-"))
    if not names:
        raise SubloraError(
            f"The store {store.root} knows of no steering vectors of {run.folder}; a recipe makes them with `measure: {{vectors: ...}}`, as "
            "steering-teacher does."
        )
    found = {name: stored(store, name) for name in names}
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, artifact in found.items():
        shutil.copyfile(artifact.file("vector.safetensors"), out / f"{name}.safetensors")
        spec = artifact.spec
        norms = " ".join(f"{n:.4g}" for n in artifact.meta.get("norms", ()))
        rows.append(
            {
                "file": f"{name}.safetensors",
                "of": spec.get("student") or "teacher",
                "norm by layer": norms,
            }
        )
    (out / "vectors.csv").write_text(to_csv(rows), encoding="utf-8")
    return [out / "vectors.csv", *(out / f"{name}.safetensors" for name in names)]
