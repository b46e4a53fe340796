"""Two runs on one page."""

import json
from pathlib import Path

from command import sublora
from report_fixture import make_page, write_run
from sublora.analysis.page import Page
from sublora.report.page import read_page


def _changed(page: Page) -> Page:
    """The same run with another verdict, setting and effect."""
    body = json.loads(page.model_dump_json())
    body["verdicts"][0]["verdict"] = "supported"
    body["manifest"]["recipe"]["level"] = 0.01
    tables = [
        p for s in body["sections"] + body["appendix"] for p in s["parts"] if p["kind"] == "table"
    ]
    cells = next(t for t in tables if "interval" in t["columns"])
    at = cells["columns"].index("interval")
    cells["rows"][2][at - 1 : at + 1] = ["+99.5", "[+99.1, +99.9]"]
    return Page.model_validate(body)


def _table(page: Page, name: str):
    return next(p for s in page.sections for p in s.parts if p.name == name)


def test_what_differs_is_named_and_what_does_not_is_counted(tmp_path: Path) -> None:
    page = make_page()
    write_run(tmp_path / "one", page)
    write_run(tmp_path / "two", _changed(page))
    out = tmp_path / "both"
    answer = sublora("compare", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out))
    assert answer.code == 0 and (out / "report.html").is_file(), answer.err
    made = read_page(out / "page.json")
    assert [t.value.split(" of ")[0] for t in made.tiles] == ["1", "1", "1"]
    (verdict,) = _table(made, "verdicts-differ").rows
    assert [t[0].split(":")[0] for t in verdict.texts] == ["refuted", "supported"]
    assert _table(made, "settings-differ").rows == (("recipe.level", "0.05", "0.01"),)
    (apart,) = [r for r in _table(made, "both-table-cells-trait-1").rows if r[-1]]
    assert apart[3] == "+99.5" and apart[1] != apart[3]


def test_runs_of_two_traits_are_held_together_and_a_run_with_itself_is_refused(
    tmp_path: Path,
) -> None:
    for trait in ("otter", "wolf"):
        write_run(tmp_path / trait, make_page(traits=((trait, "animals"),)))
    one, two = (str(tmp_path / trait) for trait in ("otter", "wolf"))
    answer = sublora("compare", one, two, "--out", str(tmp_path / "both"))
    assert answer.code == 0, answer.err
    made = read_page(tmp_path / "both" / "page.json")
    assert made.tiles[0].value == "0 of 5" and made.tiles[1].value.startswith("0 of ")
    assert int(made.tiles[1].value.split()[-1]) > 20, "the cells of both are side by side"
    for pair in ((one, one), (one, str(tmp_path / "none"))):
        wrong = sublora("compare", *pair, "--out", str(tmp_path / "wrong"))
        assert wrong.code == 2 and wrong.err.startswith("Error: ")
        assert not (tmp_path / "wrong").exists()
