"""What commands print for programs: JSON alone on standard output, of the documented shape."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command import sublora
from sublora.runner.table import print_json, print_table

DOCUMENTED = (Path(__file__).parent.parent / "docs" / "json.md").read_text("utf-8")


def printed(*arguments: str) -> Any:
    answer = sublora(*arguments, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def documented(command: str, value: dict[str, Any]) -> bool:
    """Whether the row of this command names every key of the value."""
    row = next(line for line in DOCUMENTED.splitlines() if line.startswith(f"| `{command}"))
    return set(value) <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("what", ["recipes", "traits", "contexts", "models", "claims", "runs"])
def test_a_list_is_a_list_of_objects(what: str) -> None:
    rows = printed("ls", what)
    assert len({tuple(row) for row in rows}) <= 1 and all(rows)
    if what == "models":
        micro = next(row for row in rows if row["model"] == "micro")
        assert isinstance(micro["parameters"], int) and isinstance(micro["mb"], float)


def test_words_choose_rows() -> None:
    assert [row["category"] for row in printed("ls", "traits", "otter")] == ["animals"]
    assert sublora("ls", "traits", "no such word").out == ""


def test_a_plan_says_what_its_table_says() -> None:
    told = printed("plan", "rank")
    assert documented("plan", told) and documented("plan", told["makes"][0])
    table = sublora("plan", "rank").out
    for made in told["makes"]:
        assert re.search(
            rf"^{re.escape(made['kind'])} +{made['count']:,} +{made['done']:,} ", table, re.M
        )


def test_contexts_have_their_tokens() -> None:
    default, *_ = told = printed("contexts", "micro")
    assert documented("contexts", default) and documented("contexts", default["tokens"][0])
    assert [context["context"] for context in told] == ["default", "empty", "none"]
    assert "".join(token["token"] for token in default["tokens"]).count("im_start") == 3
    assert [c["context"] for c in printed("contexts", "micro", "--diff", "default", "none")] == [
        "default",
        "none",
    ]


@pytest.mark.parametrize("command", ["verify", "gc", "du"])
def test_a_store_is_counted(command: str) -> None:
    assert documented(f"store {command}", printed("store", command))


def test_an_audit_is_priced() -> None:
    told = printed("audit", "--base", "micro", "--dry-run")
    assert documented("audit --dry-run", told) and documented("audit --dry-run", told["steps"][0])


def test_what_is_no_finite_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), 1.5, (float("inf"),)], 2: Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, [None]], "2": "x"}


@pytest.mark.parametrize("columns", [60, 120])
def test_a_table_is_as_wide_as_it_may_be(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(["name", "what"], [["a-name-that-stays-whole", "word " * 60], ["b", None]])
    lines = capsys.readouterr().out.splitlines()
    assert columns - 10 < max(map(len, lines)) <= columns
    assert not any(line.endswith(" ") for line in lines) and "a-name-that-stays-whole" in lines[1]


def test_the_version_and_what_a_shell_completes() -> None:
    from sublora import __version__
    from sublora.cli.options import lists, recipes

    assert sublora("--version").out == f"sublora {__version__}\n"
    assert "rank-lr" in recipes("rank-") and lists("re") == ["recipes"]
