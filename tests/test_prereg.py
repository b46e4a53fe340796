"""A file fixes a run beforehand: every edit of it is seen, what differs from it is refused by name, and the page says which came first."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command import SMALL, sublora
from sublora.errors import SubloraError
from sublora.experiments.claims import load_claims
from sublora.experiments.kinds import open_recipe
from sublora.report.page import read_page, render
from sublora.runner import prereg as module
from sublora.runner.prereg import (
    check_run,
    read_prereg,
    registered_recipe,
    registration,
    write_prereg,
)
from sublora.store import Store

LITTLE = [w for w in SMALL if w != "--set"] + ["train.lora.ranks=[8]", "train.lora.lrs=[1e-3]"]
ASKED = {"name": "rank-lr", "sets": [*LITTLE, "train.full=null"]}
FLAGS = [word for value in ASKED["sets"] for word in ("--set", value)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prereg")
    return write_prereg(ASKED, folder / "p.yaml", Store(folder / "store"))


@pytest.fixture(scope="module")
def prereg(written):
    return read_prereg(written)


@pytest.fixture(scope="module")
def planned(prereg):
    """What a run knows of its model, and its steps."""
    recipe = registered_recipe(prereg, {})
    known = recipe.known()
    return known, recipe.plan(known)


def students(steps) -> int:
    return len({name for step in steps for name in step.makes if name.startswith("student-")})


def test_the_file_holds_what_will_be_run_and_its_own_hash(written, prereg, planned) -> None:
    lines = written.read_text("utf-8").splitlines(keepends=True)
    above = hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()
    assert lines[-1] == f"sha256: {above}\n" and prereg.sha256 == above
    fixed, recipe = prereg.fixed, open_recipe(**ASKED)
    assert registered_recipe(prereg, {}) == recipe and fixed.traits == ["otter"]
    assert fixed.seeds == {"data.seeds": [1, 2], "train.seeds": [1, 2], "measure.seed": 0}
    asked = {c.id: c.thresholds for c in load_claims() if "rank-lr" in c.recipes}
    assert {c["id"]: c["thresholds"] for c in fixed.claims} == asked
    assert all(c["statement"] and c["source"] and c["test"] for c in fixed.claims)
    assert fixed.plan["student"].count == students(planned[1]) and check_run(prereg, *planned) == []


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), letter=st.sampled_from("0aZ:# \n"))
def test_every_edit_is_seen(written, place, letter) -> None:
    text = written.read_text("utf-8")
    at = int(place * (len(text) - 1))  # before the last line break
    if text[at] == letter:
        return
    changed = written.with_name("changed.yaml")
    changed.write_text(text[:at] + letter + text[at + 1 :], "utf-8")
    with pytest.raises(SubloraError, match=r"changed after it was written|is no prereg file"):
        read_prereg(changed)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "micro-b"}, r'recipe, model: it has "micro-b", the file has "micro"'),
        ({"traits": ["wolf"]}, r"recipe, traits"),
        ({"sets": ["train.epochs=7"]}, r"recipe, train, epochs: it has 7"),
        ({"name": "full-ft"}, r'recipe, name: it has "full-ft"'),
        ({"preset": "nief"}, r"rank-lr.yaml line \d+: fixed_lr"),  # together they are no recipe
    ],
)
def test_what_is_given_beside_the_file_has_to_agree(prereg, given, words) -> None:
    with pytest.raises(SubloraError, match=words):
        registered_recipe(prereg, given)
    agrees = {"name": "rank-lr", "model": "micro", "sets": ["data.rows=96"], "preset": None}
    assert registered_recipe(prereg, agrees) == registered_recipe(prereg, {})


def test_another_claim_is_refused_by_name(prereg, monkeypatch) -> None:
    claims = load_claims()
    first = next(c for c in claims if "rank-lr" in c.recipes)
    for some, words in (
        ([c.at(2) if c == first else c for c in claims], f"{first.id}, thresholds, min_effect"),
        ([c for c in claims if c != first], f"{first.id}: it has nothing"),
        (
            [c.model_copy(update={"statement": "No."}) if c == first else c for c in claims],
            f"{first.id}, statement",
        ),
    ):
        monkeypatch.setattr(module, "load_claims", lambda some=some: some)
        with pytest.raises(SubloraError, match=f"the claims, {words}"):
            registered_recipe(prereg, {})


def test_another_model_plan_or_version(prereg, planned, monkeypatch) -> None:
    known, steps = planned
    other = replace(known, identity={**known.identity, "weights": "f" * 64})
    with pytest.raises(SubloraError, match="the model, weights"):
        check_run(prereg, other, steps)
    with pytest.raises(SubloraError, match="artifacts of kind"):
        check_run(prereg, known, steps[:-1])
    monkeypatch.setattr(module, "version", lambda _: "9.9")
    assert "is 9.9; its claims and artifacts are the same" in check_run(prereg, known, steps)[0]


def test_time_tells_a_pre_registration_from_a_late_one(prereg, planned) -> None:
    steps, at = planned[1], prereg.fixed.written

    def made(*times: str | None):
        left = iter(times)
        return registration(prereg, steps, SimpleNamespace(created=lambda _: next(left, None)))

    later = "2999-01-01T00:00:00+00:00"
    assert made().before == 0 and made().first_made is None
    good = made(later, None, "2998-01-01T00:00:00+00:00")
    assert (good.before, good.planned, good.first_made[:4]) == (0, students(steps), "2998")
    assert good.sentence.startswith("Recipe, claims, thresholds and model are those of `p.yaml`")
    late = made(later, "2001-01-01T00:00:00+00:00")
    assert (
        late.before == 1
        and f"no pre-registration: 1 of {students(steps)} students" in late.sentence
    )
    assert made(at).before == 1  # the same second proves nothing


def test_bad_files_are_one_sentence(written, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.yaml").write_text("name: x\n")
    for words, said in (
        (["run", "--prereg", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["run", "--prereg", "no.yaml"], "no.yaml is no prereg file"),
        (["run"], "Give a recipe"),
        (["run", "--prereg", str(written), "--trait", "wolf"], "recipe, traits"),
        (["prereg", "rank-lr", "-o", str(written)], "is there already"),
        (["prereg", "rank-lr", "-o", "nowhere/p.yaml"], "no folder nowhere"),
        (["prereg", "rank-lr", "--model", "some/where"], "not known"),
    ):
        answer = sublora(*words)
        assert answer.code == 2 and said in answer.err, answer
        assert answer.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["no.yaml"]  # nothing was begun


def test_a_run_cites_its_file_and_a_later_file_is_no_pre_registration(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sublora("prereg", "rank-lr", *FLAGS).code == 0
    answer = sublora("run", "--prereg", "prereg-rank-lr.yaml", "--out", "r")
    assert answer.code == 0, answer.err
    run, page = json.loads(Path("r/run.json").read_text()), read_page(Path("r/page.json"))
    cited, fixed = run["prereg"], read_prereg(Path("prereg-rank-lr.yaml")).fixed
    first = min(
        json.loads(p.read_text())["created"]
        for p in Path(os.environ["SUBLORA_HOME"]).glob("artifacts/student/*/manifest.json")
    )
    assert cited["before"] == 0 and cited["planned"] == fixed.plan["student"].count
    assert cited["written"] < cited["first_made"] == first
    assert page.registration.model_dump() == cited
    verdicts = json.loads(Path("r/verdicts.json").read_text())
    assert verdicts and all(v["prereg"] == cited for v in verdicts)
    assert "are those of <code>prereg-rank-lr.yaml</code>" in render(page)
    # the same work again, fixed after it was done
    assert sublora("prereg", "rank-lr", *FLAGS, "-o", "late.yaml").code == 0
    answer = sublora("run", "--prereg", "late.yaml", "--out", "r")
    assert answer.code == 0 and "no pre-registration" in answer.err, answer
    late = render(read_page(Path("r/page.json")))
    whole = f"{cited['planned']} of {cited['planned']}"
    assert f"This is no pre-registration: {whole} students were made before" in late
