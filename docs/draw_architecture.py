"""Draws docs/architecture.png: the packages of `architecture.md` from top to bottom, and how often each imports which.

    python docs/draw_architecture.py

It also writes docs/files.md, the first sentence of every file.

A number stands in the row of the package that imports and the column of the one that is imported. Imports that go downward
lie on the right of the diagonal, in green, so one glance shows that none goes up.
"""

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "sublora"
GROUND = "errors, seeds, text"


def packages() -> dict[str, str]:
    """name -> purpose, from top to bottom, as the first table of architecture.md says; the single files last."""
    table = (HERE / "architecture.md").read_text("utf-8").split("| package |")[1].split("\n\n")[0]
    return {
        name: purpose.strip()
        for name, purpose in re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M)
    }


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """module -> the modules of the package that it imports, wherever the import stands (in functions and for types too)."""
    files = sorted(SOURCE.rglob("*.py"))
    names = {module_of(f) for f in files}
    found: dict[str, set[str]] = {}
    for file in files:
        own = found.setdefault(module_of(file), set())
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sublora":
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    own.add(full if full in names else node.module)
            elif isinstance(node, ast.Import):
                own |= {a.name for a in node.names if a.name in names}
    return {module: targets - {module} for module, targets in found.items()}


def package_of(module: str) -> str:
    """The package of a module; the single files of the root count as the ground."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (SOURCE / parts[1]).is_dir() else GROUND


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    known = {
        **packages(),
        GROUND: "one exception, one source of randomness, one way to write a number",
    }
    rows = list(known)
    counts = Counter(
        (package_of(module), package_of(target))
        for module, targets in imports().items()
        for target in targets
        if module != "sublora"
    )
    lines = Counter()
    for file in SOURCE.rglob("*.py"):
        lines[package_of(module_of(file))] += file.read_text("utf-8").count("\n")
    count, left = len(rows), 7.6
    figure = Figure(figsize=(13.6, 0.5 * count + 1.1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, left + count + 0.9), ylim=(count + 0.2, -1.9))
    axes.axis("off")
    for i, name in enumerate(rows):
        axes.barh(i + 0.5, left - 0.3, left=0.1, height=0.86, color="#e8eef6", edgecolor="#7a94b8")
        axes.text(0.25, i + 0.36, name, weight="bold", fontsize=10, va="center")
        axes.text(
            left - 0.35,
            i + 0.36,
            f"{lines[name]:,} lines",
            fontsize=7.5,
            va="center",
            ha="right",
            color="#555",
        )
        axes.text(0.25, i + 0.7, known[name], fontsize=7, va="center", color="#333")
        axes.text(
            left + i + 0.5,
            -0.15,
            name.split(",")[0],
            rotation=45,
            fontsize=8,
            ha="left",
            va="bottom",
        )
        for j, other in enumerate(rows):
            times = counts[name, other]
            colour = (
                "#dddddd"
                if i == j
                else "#bcd6b8"
                if times and j > i
                else "#e79a9a"
                if times
                else "#f7f7f7"
            )
            axes.barh(i + 0.5, 0.94, left=left + j + 0.03, height=0.9, color=colour)
            if times and i != j:
                axes.text(
                    left + j + 0.5, i + 0.52, str(times), fontsize=8, ha="center", va="center"
                )
    figure.savefig(path, dpi=110, metadata={"Software": None})


def listing() -> str:
    """docs/files.md: every file with the first paragraph of its docstring."""
    out = [
        "# Every file in one line",
        "",
        "Made by `python docs/draw_architecture.py` of the files' own first words.",
        "",
    ]
    for name, purpose in {**packages(), GROUND: "below all"}.items():
        files = sorted(f for f in SOURCE.rglob("*.py") if package_of(module_of(f)) == name)
        out += [f"## {name}", "", f"{purpose[:1].upper()}{purpose[1:]}.", ""]
        for file in files:
            said = ast.get_docstring(ast.parse(file.read_text("utf-8")))
            if said:
                first = " ".join(said.split("\n\n")[0].split())
                out.append(f"- `{file.relative_to(SOURCE)}`: {first}")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    draw(HERE / "architecture.png")
    (HERE / "files.md").write_text(listing(), encoding="utf-8")
