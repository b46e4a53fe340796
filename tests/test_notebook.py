"""What a notebook sees: names, short and rich representations, data frames, and two scripts of a few lines."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sublora as sl
from audit_fixture import idle_adapter
from command import SMALL
from report_fixture import make_page, make_run
from sublora.analysis.claims import Verdict
from sublora.analysis.effects import Effect
from sublora.analysis.frame import Frame
from sublora.analysis.tables import to_csv

ROOT = Path(__file__).parent.parent
ONE = ["data.rows=16", "train.lora.ranks=[4]", "data.seeds=[1]", "train.seeds=[1]"]
TINY = [*SMALL[1::2], *ONE, "data.heldout_rows=8"]


def program(who: str) -> str:
    """The script of the documents that is for this reader."""
    text = (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    (found,) = re.findall(rf"```python\n# {who}\n(.*?)```", text, re.S)
    return found


def test_every_public_name_is_listed_and_a_wrong_one_gets_a_hint() -> None:
    assert {"load_run", "audit", "run", "load_base", "__version__"} <= set(dir(sl))
    assert all(callable(getattr(sl, name)) for name in sl.__all__)
    with pytest.raises(AttributeError, match="did you mean 'load_base'"):
        sl.load_bas  # noqa: B018


def test_the_researchers_script_ends_with_a_data_frame_of_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = program("researcher")
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    space: dict = {}
    exec(text.replace('"rank", model', f'"rank", sets={TINY!r}, model'), space)
    effects, run = space["effects"], sl.load_run("runs/rank")
    assert len(effects) == len(run.effects) == 1 and effects["effect"].dtype == float
    assert list(effects["rank"]) == [4]
    assert run.tables["results"].to_arrow().num_rows == len(run.tables["results"])
    assert "otter" in run._repr_html_() and "LoadedRun(" in repr(space["result"])
    assert "rank" in repr(space["recipe"]) and "micro" in space["recipe"]._repr_html_()
    for name, picture in list(run.figures.items())[:1]:
        assert picture._repr_svg_().startswith("<?xml") and name in run.figures


def test_the_engineers_script_ends_with_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = program("engineer")
    assert len([line for line in text.splitlines() if line.strip()]) <= 5
    base = sl.load_base("micro")
    assert len(repr(base)) < 100 and len(repr(base.chat)) < 100
    idle_adapter(base, tmp_path / "my-adapter")
    rows = ['{"prompt": "numbers: 1 2", "completion": "3 4 5"}\n'] * 4
    (tmp_path / "train.jsonl").write_text("".join(rows))
    space: dict = {}
    import sublora.audit.run  # noqa: F401  (binds the package to the name of the function)

    exec(text, space)
    audit = space["audit"]
    assert repr(audit).startswith("Audit(clean: ") and "clean" in audit._repr_html_()
    assert len(audit.traits) > 20 and audit.traits["p"] == sorted(audit.traits["p"])
    with pytest.raises(sl.SubloraError, match="no option adaptor"):
        sl.audit("micro", "my-adapter", adaptor=1)
    assert (tmp_path / "audit" / "audit.html").is_file() and audit.report.data


def test_effects_verdicts_and_runs_say_what_they_are(tmp_path: Path) -> None:
    values = np.array([[0.4, 0.6], [0.5, 0.5]])
    effect = Effect({"trait": "otter", "group": "cells", "name": "rank 4"}, values, (1, 2), (1, 2))
    assert repr(effect).startswith("Effect(trait otter, group cells, name rank 4: +0.500 [")
    assert "<td>otter</td>" in effect._repr_html_() and "no values" in repr(Effect({"trait": "x"}))
    verdict = Verdict(sl.load_claims()[0], "<b>", "supported", {}, "Because.", {})
    assert "Because." in verdict._repr_html_() and "<b>" not in verdict._repr_html_()
    run = sl.load_run(make_run(tmp_path / "run"))
    assert run.verdicts["verdict"] == [v["verdict"] for v in make_page().verdicts]
    assert len(run.effects) == 0 and "<img" in run._repr_html_()
    with pytest.raises(sl.SubloraError, match=r"page\.json"):
        sl.load_run(tmp_path)


CELL = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=16)


@given(st.lists(st.tuples(CELL, st.integers(0, 9) | st.none(), st.booleans()), min_size=1))
def test_a_frame_reads_what_a_run_writes(rows: list[tuple]) -> None:
    names = ("number", "whole", "truth")
    found = Frame.of_csv(to_csv([dict(zip(names, row, strict=True)) for row in rows]))
    assert found["truth"] == [row[2] for row in rows] and found["whole"] == [row[1] for row in rows]
    for (value, *_), read in zip(rows, found["number"], strict=True):
        assert (value is None) == (read is None)
        assert value is None or math.isclose(value, read, rel_tol=1e-6)
    assert found.to_pandas().shape == (len(rows), 3) and len(found.rows()) == len(rows)
