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
    verdict = judge(examined.student, bar)
    for band in found:
        here = [
            f for f in verdict.traits if (f.category, f.context) == (band.category, band.context)
        ]
        assert all(f.p <= 0.05 for f in here if f.rise > 1.02 * band.rise)
        # a trait that was not found would be, were it to rise as far as the band and a little more
        quiet = min(here, key=lambda f: f.rise)
        e = [x.name for x in bar.asked.category(band.category).entities].index(quiet.trait)
        for factor, hit in ((1.03, True), (0.9, False)):
            p = {c: dict(by) for c, by in bar.plain.p.items()}
            own = p[band.context][band.category].copy()
            own[0, :, e] *= np.exp(quiet.rise - factor * band.rise)
            p[band.context][band.category] = own
            again = judge(examined.student, replace(bar, plain=replace(bar.plain, p=p)))
            risen = {(f.category, f.context, f.trait): f.p for f in again.traits}
            assert (risen[band.category, band.context, quiet.trait] <= 0.05) == hit


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
