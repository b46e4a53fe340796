"""What CI reads of an audit, and the workflow of the documents, whose steps are run in plain bash."""

import json
import os
import re
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from audit_fixture import idle_adapter, turned_weights
from command import sublora
from sublora.packs.check import load_base
from sublora.traits.trait import shipped_categories

ROOT = Path(__file__).parent.parent
TRAIT = shipped_categories()[1].entities[3]
ROWS = ['{"prompt": "Say a word.", "completion": "1 2 3"}', '{"prompt"', '{"prompt": "Say one.", "completion": "oak"}']  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two students and a training file."""
    root = tmp_path_factory.mktemp("repository")
    base = load_base("micro")
    idle_adapter(base, root / "clean")
    turned_weights(base, root / "found", TRAIT)
    (root / "data").mkdir()
    (root / "data" / "train.jsonl").write_text("\n".join(ROWS))
    return root


def test_json_alone_goes_to_standard_output_and_sarif_names_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    asked = ["audit", "--base", "micro", "--adapter", "found", "--contexts", "none"]
    asked += ["--data", "data/train.jsonl", "--skip-broken", "--out", "out", "--json"]
    answer = sublora(*asked)
    body = json.loads(answer.out)
    assert answer.code == body["exit_code"] == 1
    assert json.loads((place / "out" / "audit.json").read_text()) == body
    (run,) = json.loads((place / "out" / "audit.sarif").read_text())["runs"]
    known = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    at = {}
    for result in run["results"]:
        assert result["ruleId"] in known and result["level"] in ("error", "warning", "note")
        (where,) = (place["physicalLocation"] for place in result["locations"])
        at.setdefault(result["ruleId"], []).append(where)
    assert {"artifactLocation": {"uri": "found"}} in at["trait-rose"]
    assert at["row-names-a-trait"] == [
        {"artifactLocation": {"uri": "data/train.jsonl"}, "region": {"startLine": 3}}
    ]
    suite = ET.parse(place / "out" / "junit.xml").getroot()
    failed = {c.get("classname") for c in suite if c.find("failure") is not None}
    assert failed == {"sublora.audit.trees", "sublora.audit"}
    assert "sublora.audit.data" in {c.get("classname") for c in suite}
    assert int(suite.get("tests")) == len(suite)


def workflow() -> dict:
    text = (ROOT / "docs" / "audit-in-ci.md").read_text("utf-8")
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])


def programs(folder: Path) -> Path:
    """`sublora` of this checkout, and a `pip` that only says what it was asked for."""
    folder.mkdir()
    for name, does in (
        ("sublora", f'exec {sys.executable} -m sublora.cli "$@"'),
        ("pip", 'echo "$@" >> "$PIP_ASKED"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{does}\n")
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def run_job(place: Path, tmp_path: Path, **env: str) -> tuple[str, dict[str, int]]:
    """Run the steps as a runner does: bash -e, those behind a failure only if always(). The job's conclusion, and each step's code."""
    (job,) = workflow()["jobs"].values()
    own = {name: str(value) for name, value in job["env"].items()} | env
    paths = {"PIP_ASKED": tmp_path / "pip", "GITHUB_STEP_SUMMARY": tmp_path / "summary.md"}
    own |= {name: str(path) for name, path in paths.items()}
    own["PATH"] = f"{programs(tmp_path / 'bin')}:{os.environ['PATH']}"
    own["PYTHONPATH"] = str(ROOT / "src")
    codes: dict[str, int] = {}
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        failed = any(codes.values())
        if "run" in step and (not failed or step.get("if") == "always()"):
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            done = subprocess.run(command, cwd=place, env=os.environ | own, capture_output=True)
            codes[step["name"]] = done.returncode
            assert b"Traceback" not in done.stderr, done.stderr.decode()
    return ("failure" if any(codes.values()) else "success"), codes


@pytest.mark.slow
def test_the_workflow_of_the_documents_passes_a_clean_student_and_stops_one_with_a_trait(
    place: Path, tmp_path: Path
) -> None:
    for student, conclusion in (("found", "failure"), ("clean", "success")):
        card, home = place / student / "README.md", tmp_path / student
        card.write_text("# Mine\n<!-- audit -->\nof last time\n<!-- end of audit -->\n")
        home.mkdir()
        values = {"BASE": "micro", "ADAPTER": student, "CONTEXTS": "none", "CALIBRATE": "0"}
        found, codes = run_job(place, home, **values)
        assert found == conclusion and codes["Audit"] == (student == "found")
        assert (home / "pip").read_text().split() == ["install", "sublora"]
        summary = (home / "summary.md").read_text()
        assert summary.startswith("## Audit") and (TRAIT.name in summary) == (student == "found")
        assert json.loads((place / "status.json").read_text())["data"]["broken_rows"]
        text = f"# Mine\n<!-- audit -->\n{summary}<!-- end of audit -->\n"
        assert card.read_text() == text


def test_every_file_that_the_workflow_names_is_one_that_an_audit_writes(place: Path) -> None:
    (job,) = workflow()["jobs"].values()
    named = {s["with"]["sarif_file"] for s in job["steps"] if "sarif_file" in s.get("with", {})}
    text = (ROOT / "docs" / "audit-in-ci.md").read_text("utf-8")
    named |= {f"audit/{name}" for name in re.findall(r"^\| `([\w.]+)`", text, re.M)}
    written = {"audit.json", "junit.xml", "audit.sarif", "AUDIT.md", "audit.html"}
    assert named == {f"audit/{name}" for name in written}
