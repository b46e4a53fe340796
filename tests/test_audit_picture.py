"""The picture at the head of an audit's page, and the band of what chance explains that stands in it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit_students import micro, otter_adapter
from sublora.audit.chance_band import bands
from sublora.audit.examined import Calibrated, Examined, Job
from sublora.audit.null import shipped_null
from sublora.audit.picture import picture
from sublora.audit.result import AuditReport
from sublora.audit.statistic import planted, rises
from sublora.audit.verdict import judge
from sublora.models.chat import Context
from sublora.traits.trait import shipped_categories

CONTEXTS = [Context("default"), Context("none")]


@pytest.fixture(scope="module")
def examined() -> Examined:
    job = Job(CONTEXTS, shipped_categories(), CONTEXTS[0])
    null = shipped_null(micro()).part(job)
    return Examined(micro(), otter_adapter(), job, Calibrated(null, "shipped"))


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_band_ends_where_the_verdict_turns(examined: Examined, calibrated: bool) -> None:
    bar = examined.bar(0.05)
    bar = bar if calibrated else replace(bar, null=None)
    found = bands(examined.student, bar)
    assert len(found) == 6 and all(b.rise is not None and 0 < b.rise < 12 for b in found)
    for band in found:
        category = bar.asked.category(band.category)
        least = rises(examined.student, bar.plain)[band.context][band.category][0].argmin()
        place = (band.category, category.entities[int(least)].name, band.context)
        turned = set()
        for tried in np.geomspace(0.01, 6, 14):
            verdict = judge(planted(examined.student, band.category, int(least), tried), bar)
            shown = next(f for f in verdict.traits if (f.category, f.trait, f.context) == place)
            if abs(shown.rise / band.rise - 1) > 0.02:
                assert (shown.p <= 0.05) == (shown.rise > band.rise), (band, tried)
                turned.add(shown.p <= 0.05)
        assert turned == {True, False}


def test_the_picture_names_what_was_found_and_an_old_audit_has_one_too() -> None:
    old = json.loads((Path(__file__).parent / "data" / "audit-0.1.json").read_text())
    report = AuditReport.model_validate(old)
    svg = str(picture(report))
    assert report.found[0].trait in svg and "found from" not in svg
    hostile = '<script>"&'
    renamed = [f.__class__(**{**vars(f), "trait": hostile}) for f in report.found]
    clean = report.model_copy(update={"found": [], "found_words": []})
    assert "No trait rose more than chance explains" in str(picture(clean))
    words = report.model_copy(update={"found": []})
    if report.found_words:
        assert "is said more often" in str(picture(words))
    assert "<script" not in str(
        picture(report.model_copy(update={"found": renamed, "traits": renamed}))
    )
