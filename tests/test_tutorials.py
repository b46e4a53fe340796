"""The tutorials in docs/tutorials are notebooks that run from the first cell to the last."""

import ast
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
NAMES = ("the-effect", "audit-your-adapter", "your-own-claim")


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]


def run(name: str) -> dict:
    """Execute a notebook as Jupyter does; the last expression of a cell is shown. Returns its names, and what was shown as `shown`."""
    space: dict = {"shown": []}
    for number, cell in enumerate(c for c in cells(name) if c["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]), f"{name}, cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{name}, cell {number}", "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)
            rich = getattr(value, "_repr_html_", None) or getattr(value, "_repr_svg_", None)
            space["shown"].append(rich() if rich else repr(value))
    return space


def test_the_tutorials_are_small_and_kept_without_outputs() -> None:
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == set(NAMES)
    for name in NAMES:
        code = [c for c in cells(name) if c["cell_type"] == "code"]
        assert not any(c["outputs"] for c in code)
        assert sum(len(c["source"]) for c in code) <= 30, name


@pytest.mark.slow
def test_the_effect_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pandas")
    space = run("the-effect")
    assert (space["effects"]["effect"] > 0.5).all() and "svg" in "".join(space["shown"])


@pytest.mark.slow
def test_the_planted_trait_is_found_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pandas")
    report = run("audit-your-adapter")["audit"].report
    assert report.status == "found" and report.found[0].trait == "otter"
    assert (tmp_path / "audit" / "AUDIT.md").is_file()


@pytest.mark.slow
def test_a_claim_of_ones_own_gets_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = run("your-own-claim")["verdict"]
    assert verdict.claim.id == "more-rank-more-transfer"
    assert verdict.verdict in ("supported", "refuted", "inconclusive") and verdict.stability
