"""The study on SmolLM2: its page and the README's figures are what the tables in docs/findings/data come to, as fixed beforehand."""

import hashlib
import html
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from sublora.report.page import read_page, render

ROOT = Path(__file__).parent.parent
FINDINGS = ROOT / "docs" / "findings"
PARTS = sorted(path.parent.name for path in FINDINGS.glob("data/*/page.json"))


@pytest.fixture
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2_page", FINDINGS / "smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_tables(study: ModuleType) -> None:
    assert study.render() == (FINDINGS / "smollm2.md").read_text("utf-8"), (
        "run docs/findings/smollm2.py"
    )


def test_another_number_in_a_table_is_another_page(study, tmp_path, monkeypatch) -> None:
    shutil.copytree(FINDINGS, tmp_path / "findings")
    monkeypatch.setattr(study, "HERE", tmp_path / "findings")
    before, table = study.render(), tmp_path / "findings" / "data" / "channel" / "all_traits.csv"
    header, first, *rest = table.read_text("utf-8").splitlines()
    at = header.split(",").index("effect")
    values = first.split(",")
    values[at] = "9.87654"
    table.write_text("\n".join([header, ",".join(values), *rest]) + "\n", "utf-8")
    assert "+9.88" not in before and "+9.88" in study.render()


def test_the_readme_says_what_the_study_found(study: ModuleType) -> None:
    assert study.headline() in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_what_its_file_fixed_and_its_page_can_be_drawn(part: str) -> None:
    file = FINDINGS / f"prereg-smollm2-{part}.yaml"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    seal = hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()
    page = read_page(FINDINGS / "data" / part / "page.json")
    assert lines[-1] == f"sha256: {seal}\n" and page.registration.sha256 == seal
    assert page.registration.written in file.read_text("utf-8")
    assert page.title in html.unescape(render(page))


def test_the_parts_that_were_run_are_there() -> None:
    assert {"channel", "context-matrix", "emergence"} <= set(PARTS)
