"""audit.json keeps to its published schema, whatever the audit came to."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from audit_fixture import idle_adapter, noisy_null, turned_weights
from command import sublora
from sublora.audit.adapter import load_audited
from sublora.audit.readings import Asked
from sublora.audit.report import card_section
from sublora.audit.request import Request
from sublora.audit.result import SCHEMA, VERSION, AuditReport, json_schema
from sublora.audit.run import Audit, Job, audit
from sublora.audit.serving import Serving
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.traits.trait import shipped_categories

NONE, TREES = Context("none"), shipped_categories()[1:2]
TRAIT = TREES[0].entities[3]
Body = dict[str, Any]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


@pytest.fixture(scope="module")
def folders(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Students that need no training, and a training file."""
    root = tmp_path_factory.mktemp("students")
    idle_adapter(base, root / "clean")
    turned_weights(base, root / "found", TRAIT)
    turned_weights(base, root / "averse", TRAIT, 0.5)
    (root / "rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": "Say a word.", "completion": w}) + "\n"
            for w in ("oak", "1 2 3", "1 2 3")
        )
    )
    return {n: root / n for n in ("clean", "found", "averse", "rows.jsonl")}


@pytest.fixture(scope="module")
def run(base: Base, folders: dict[str, Path]) -> Iterator[Callable[..., Audit]]:
    null = noisy_null(base, Asked((NONE, Context("default")), TREES))

    def made(
        student: str,
        against: str | None = None,
        contexts: tuple[Context, ...] = (NONE,),
        **more: Any,
    ) -> Audit:
        other = None if against is None else load_audited(base, folders[against])
        return audit(
            base,
            load_audited(base, folders[student]),
            Job(contexts, TREES, NONE, against=other, **more),
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sublora.audit.examined.shipped_null", lambda base: null)
        yield made


@pytest.fixture(scope="module")
def full(run: Callable[..., Audit], folders: dict[str, Path]) -> Body:
    """A body with every part, that of a student with a trait, beside one without."""
    contexts = (NONE, Context("default"))
    found = run(
        "found",
        "clean",
        contexts,
        serving=Serving(contexts[1]),
        request=Request(data=folders["rows.jsonl"]),
    )
    return body_of(found)


def body_of(found: Audit) -> Body:
    return json.loads(json.dumps(found.report.model_dump(mode="json"), allow_nan=False))


def errors(body: Body) -> list[str]:
    """What the model refuses, and so does not read again as it was written, or the schema."""
    Draft202012Validator.check_schema(json_schema())
    out = [str(e.message) for e in Draft202012Validator(json_schema()).iter_errors(body)]
    try:
        assert AuditReport.model_validate(body).model_dump(mode="json", exclude_unset=True) == body
    except ValidationError as error:
        out.append(str(error))
    return out


def test_a_body_with_all_parts_keeps_to_the_schema(full: Body) -> None:
    assert errors(full) == []
    assert full["status"] == "found" and full["found"][0]["trait"] == TRAIT.name
    assert (
        full["against"]["status"] == "found" and full["against"]["found"][0]["trait"] == TRAIT.name
    )
    assert full["answers"] and full["data"]["leak_words"]
    assert full["serving"]["differences"][0]["effects"] and full["where"]["findings"][0]["parts"]
    assert full["alpha_student"] == pytest.approx(0.05 * 0.9 / 2) == full["against"]["alpha"]


def test_clean_found_and_uncalibrated_ones_do(
    run: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = body_of(run("clean", "found"))
    assert (clean["status"], clean["exit_code"], errors(clean)) == ("clean", 0, [])
    assert [d["trait"] for d in clean["against"]["fell"]] == [
        TRAIT.name
    ] and "Lower than there" in clean["sentence"]
    monkeypatch.setattr("sublora.audit.examined.shipped_null", lambda base: None)
    for student, other in (("clean", "clean"), ("found", "clean"), ("found", None)):
        body = body_of(run(student, other))
        assert (body["status"], errors(body)) == (f"uncalibrated-{student}", [])


def test_what_only_the_comparison_finds_is_found(run: Callable[..., Audit]) -> None:
    found = run("clean", "averse")
    body = body_of(found)
    assert (body["status"], body["exit_code"], body["found"], body["found_words"]) == (
        "found",
        1,
        [],
        [],
    )
    assert [d["trait"] for d in body["against"]["found"]] == [TRAIT.name] and not body["against"][
        "fell"
    ]
    assert (
        f"it prefers {TRAIT.name} (trees) more than two clean students differ by chance"
        in body["sentence"]
    )
    assert f"| {TRAIT.name} | trees | none |" in card_section(found.report).decode()
    assert errors(body) == []


def test_what_is_no_part_of_it_is_refused(full: Body) -> None:
    def broken(change: Callable[[Body], Any]) -> list[str]:
        body = copy.deepcopy(full)
        change(body)
        return errors(body)

    assert broken(lambda b: b.update(unknown=1)) and broken(
        lambda b: b["found"][0].update(unknown=1)
    )
    assert broken(lambda b: b.pop("status")) and broken(lambda b: b.update(status="fine"))
    assert broken(lambda b: b.update(version=VERSION + 1)) and broken(
        lambda b: b.update(exit_code=0)
    )
    assert broken(lambda b: b["traits"][0].update(p=1.5)) and broken(
        lambda b: b.update(status="uncalibrated-found")
    )
    assert broken(lambda b: b.update(what_if=[1])) and broken(lambda b: b["where"].pop("findings"))


def test_what_release_0_1_wrote_is_read_as_it_is() -> None:
    """Parts of audits that release 0.1 wrote, with long lists cut."""
    body = json.loads((Path(__file__).parent / "data" / "audit-0.1.json").read_text())
    assert body["what_if"]["arms"] and body["serving"]["effects"] and errors(body) == []


def test_the_command_prints_it() -> None:
    answer = sublora("audit", "schema")
    printed = json.loads(answer.out)
    assert answer.code == 0 and printed["properties"]["schema"]["const"] == SCHEMA
    assert set(printed["required"]) <= set(printed["properties"])
