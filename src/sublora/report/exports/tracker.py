"""A finished run as one run of Weights & Biases or Trackio: its settings, effects and verdicts."""

from sublora.analysis.frame import needs
from sublora.report.loaded import LoadedRun
from sublora.text import slug


def log_run(run: LoadedRun, package: str, project: str = "sublora") -> str:
    """Log by `package`, wandb or trackio, which have the same functions. Raises SubloraError where it is not installed."""
    tracker = needs(package, package)
    name = str(run.manifest.get("name") or run.folder.name)
    tracker.init(project=project, name=name, config=run.manifest.get("recipe") or {})
    values = {"verdicts/" + slug(v): run.verdicts["verdict"].count(v) for v in VERDICTS}
    for row in run.effects.rows():
        value = row.get("effect", row.get("estimate"))
        names = [n for n in LABELS if row.get(n) not in (None, "")]
        if value is not None:
            values["effects/" + ", ".join(f"{n} {row[n]}" for n in names)] = value
    tracker.log(values)
    tracker.finish()
    return f"{package}: {project}/{name}, {len(values)} values"


VERDICTS = ("supported", "refuted", "inconclusive", "uninterpretable", "not run")
LABELS = ("trait", "context", "method", "rank", "lr", "variant", "subject", "group", "name")
