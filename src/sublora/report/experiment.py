"""The page of an experiment, from its run.json, findings.json and verdicts.json, with its figures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from pydantic import ValidationError

from sublora.errors import SubloraError
from sublora.experiment import Chart, Tile
from sublora.report import figures
from sublora.report.charts import draw_chart
from sublora.report.page import inline_svg, replace_file, verdict_rows, write_figure


def build_report(run_dir: Path) -> Path:
    """Write report.html and figures/*.svg|png|pdf of an experiment's folder; return the path of the page.

    The same folder gives the same bytes. Raises SubloraError where the folder's tables cannot be read, or the disk takes no more.
    """
    run_dir = Path(run_dir)
    run, found, verdicts = (
        _read(run_dir / name) for name in ("run.json", "findings.json", "verdicts.json")
    )
    try:
        charts = [Chart.model_validate(c) for c in found["charts"]]
        found["tiles"] = [Tile.model_validate(t) for t in found["tiles"]]
        rows = [_row(r) for r in found["estimates"]]
        shown = verdict_rows(verdicts)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise SubloraError(
            f"The tables of {run_dir} are not as this version writes them ({' '.join(str(error).split())[:120]}); run the recipe again."
        ) from None
    try:
        (run_dir / "figures").mkdir(exist_ok=True)
        plates = [_plate(c, run_dir / "figures") for c in charts]
        groups: dict[str, list[dict[str, Any]]] = {}
        for r in rows:
            groups.setdefault(r["title"], []).append(r)
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("experiment.html.j2").render(
            run=run,
            model=run.get("model") or {},
            found=found,
            plates=plates,
            verdicts=shown,
            groups=list(groups.items()),
            recipe=json.dumps(run["recipe"], indent=2, ensure_ascii=False, sort_keys=True),
            seconds=[(f"time, {k}", f"{v:.0f} s") for k, v in (run.get("seconds") or {}).items()],
            counts=list((run.get("counts") or {}).items()),
            versions=list((run.get("versions") or {}).items()),
        )
        return replace_file(run_dir / "report.html", page.encode("utf-8"))
    except OSError as error:
        raise SubloraError(
            f"The report of {run_dir} could not be written ({error.strerror or error}): "
            "free some room or check the folder's permissions, then run `sublora report` again."
        ) from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SubloraError(
            f"{path} cannot be read ({error}); run the recipe again, which writes it anew."
        ) from None


def _plate(chart: Chart, folder: Path) -> dict[str, Any]:
    figure = figures.render(partial(draw_chart, chart))
    points = [p for s in chart.series for p in s.points]
    label = f"{chart.title}: {len(points)} values of {chart.axis}; every number is in the table of estimates."
    svg = write_figure(folder, chart.name, figure)
    return {"name": chart.name, "svg": inline_svg(svg, chart.name, label), "caption": chart.caption}


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    low, high = r["low"], r["high"]
    return {
        "title": f"{r['subject']}: {r['group']}",
        "name": r["name"],
        "value": _number(r["estimate"]),
        "interval": "" if low is None or high is None else f"[{_number(low)}, {_number(high)}]",
        "p": ""
        if r["p_corrected"] is None
        else "< 0.001"
        if r["p_corrected"] < 0.001
        else f"{r['p_corrected']:.3f}",
        "called": r["called"],
        "n": " × ".join(
            f"{v} {k.removeprefix('n_').replace('_', ' ')}"
            for k, v in r.items()
            if k.startswith("n_") and v is not None
        ),
    }


def _number(value: float) -> str:
    text = f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.3g}"
    return text.replace("-", "−")
