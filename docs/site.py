"""What the site has besides the documents: the front page, the tutorials as pages, the API reference, and the gallery.

A hook of MkDocs (see mkdocs.yml); `make docs` builds the site. The gallery shows the page of every folder in docs/gallery and
docs/findings/data, made from its `page.json` by the report; `python docs/site.py RUN [NAME]` puts a finished run there.
"""

import json
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!http|#|mailto)[^)#\s]+)(#[^)]*)?\)")


def on_config(config):
    """Documents that the list of pages does not name stand at the end of "Use"."""
    named, use = str(config.nav), next(part["Use"] for part in config.nav if "Use" in part)
    use += [page for page in sorted(p.name for p in DOCS.glob("*.md")) if f"'{page}'" not in named]
    findings = [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.glob("findings/*.md"))]
    config.nav[-1:-1] = [{"Findings": findings}] if findings else []
    return config


def on_files(files, config):
    """Add what is made."""
    from mkdocs.structure.files import File

    texts = {to: (ROOT / name).read_text("utf-8") for name, to in PAGES.items()}
    texts |= {f"tutorials/{p.stem}.md": notebook(p) for p in DOCS.glob("tutorials/*.ipynb")}
    texts["api.md"] = reference()
    pages = [
        p
        for where in ("findings/data", "gallery")
        for p in sorted(DOCS.glob(f"{where}/*/page.json"))
    ]
    texts["gallery.md"] = gallery(pages)
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    for page in pages:
        html = report(page)
        files.append(File.generated(config, f"gallery/{page.parent.name}.html", content=html))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between documents lead to their pages, and links to other files of the project are their names."""
    source = page.file.src_uri
    folder = ROOT if source in PAGES.values() else (DOCS / source).parent

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        at = (folder / target).resolve()
        name = PAGES.get(at.name) if at.parent == ROOT else None
        if at.is_relative_to(DOCS) and (at.suffix in (".md", ".png", ".ipynb", ".html")):
            name = at.relative_to(DOCS).as_posix()
        if name is None:
            return f"{text} (`{at.relative_to(ROOT)}`)"
        up = "../" * source.count("/")
        return f"[{text}]({up}{name}{anchor})"

    return LINK.sub(lead, IMAGE.sub(r"\1", markdown) if source == "index.md" else markdown)


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, and its code as blocks."""
    parts = [f"*As a notebook: [{path.name}]({path.name})*"]
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join([parts[1], parts[0], *parts[2:]]) + "\n"


def reference() -> str:
    """Every public name with its signature and docstring."""
    stub = (ROOT / "src" / "sublora" / "__init__.pyi").read_text("utf-8")
    names = re.findall(r"from (\S+) import (\w+) as", stub)
    entries = (f"::: {module}.{name}" for module, name in sorted(names, key=lambda n: n[1]))
    head = "# API reference\n\n`import sublora as sl` gives every name below as `sl.NAME`; each is loaded when it is first used."
    return "\n\n".join([head, *entries]) + "\n"


def gallery(pages: list[Path]) -> str:
    """A list of the pages, with what each comes to."""
    from sublora.report.page import read_page
    from sublora.report.verdicts import takeaway

    lines = [
        "# Gallery\n\nPages as runs leave them: those of [the study on SmolLM2](findings/smollm2.md), and of `micro`, a model organism, whose "
        "pages are about the instrument."
    ]
    for path in pages:
        page = read_page(path)
        name = path.parent.name
        said = takeaway(page.verdicts or ()) or page.manifest.get("sentence", "")
        lines.append(f'## {page.title}: {name}\n\n{said}\n\n<a href="gallery/{name}.html">Open the page</a>')  # fmt: skip
    return "\n\n".join(lines) + "\n"


def report(page: Path) -> str:
    """The page as HTML."""
    from sublora.report.page import read_page, render

    return render(read_page(page))


def keep(run: Path, name: str) -> Path:
    """Put a finished run into the gallery. The page must be drawn from it."""
    to = DOCS / "gallery" / name / "page.json"
    report(run / "page.json")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "page.json", to)
    return to


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(keep(folder, sys.argv[2] if len(sys.argv) > 2 else folder.resolve().name))
