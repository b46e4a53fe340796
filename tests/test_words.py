"""Plain English wherever a user or a reader of the code reads: one word for one thing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "src").rglob("*.j2")),
    *sorted((ROOT / "src/sublora").rglob("*.yaml")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
INSTEAD = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\breckon(s|ed|ing)?\b": "estimate",
    r"\bha(s|ve) not[,;.]": "does not have",
    r"DESIGN(\.md)? ?\d": "what the docstring itself says: the design is not in the repository",
    r"# fmt: skip": "code that the formatter may lay out",
    r"(?<!`)``[^`\n]+``(?!`)": "Markdown: one backtick",
}


@pytest.mark.parametrize(("pattern", "better"), INSTEAD.items())
def test_there_is_a_plainer_word(pattern: str, better: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in TEXTS
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"write {better}:\n" + "\n".join(found)
