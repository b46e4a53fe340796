"""The house: imports go downward only, nothing imports in a circle, and files and functions stay small."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sublora"


def _drawing():
    spec = importlib.util.spec_from_file_location(
        "draw_architecture", ROOT / "docs" / "draw_architecture.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


drawing = _drawing()
IMPORTS = drawing.imports()
ORDER = [*drawing.packages(), drawing.GROUND]


def test_every_package_is_in_the_architecture() -> None:
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(drawing.packages())


def test_only_the_ground_stands_in_the_root() -> None:
    assert {p.name for p in SOURCE.glob("*.py")} == {
        "__init__.py",
        "errors.py",
        "seeds.py",
        "text.py",
    }


def test_imports_go_downward_only() -> None:
    up = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        if module != "sublora"  # the public names of the package
        for target in targets
        if ORDER.index(drawing.package_of(target)) < ORDER.index(drawing.package_of(module))
    ]
    assert not up, "\n".join(up)


def test_no_modules_import_in_a_circle() -> None:
    state: dict[str, int] = {}

    def visit(module: str, way: list[str]) -> None:
        assert state.get(module) != 1, " > ".join([*way[way.index(module) :], module])
        if module in state:
            return
        state[module] = 1
        for target in sorted(IMPORTS.get(module, ())):
            visit(target, [*way, module])
        state[module] = 2

    for module in IMPORTS:
        visit(module, [])


@pytest.mark.parametrize("most", [400])
def test_files_are_short(most: int) -> None:
    long = {
        str(f.relative_to(SOURCE)): n
        for f in SOURCE.rglob("*.py")
        if (n := f.read_text("utf-8").count("\n")) > most
    }
    assert not long


def test_functions_are_short() -> None:
    long = [
        f"{f.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for f in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(f.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 60
    ]
    assert not long, "\n".join(long)


def test_every_file_says_what_it_is_and_is_listed() -> None:
    silent = [
        str(f.relative_to(SOURCE))
        for f in SOURCE.rglob("*.py")
        if f.name not in ("__init__.py", "__main__.py")
        and not ast.get_docstring(ast.parse(f.read_text("utf-8")))
    ]
    assert not silent
    assert (ROOT / "docs" / "files.md").read_text("utf-8") == drawing.listing(), (
        "run docs/draw_architecture.py"
    )


def test_the_readme_names_every_package() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").split("## The tree")[1]
    assert all(f"      {name}/" in tree for name in drawing.packages())
