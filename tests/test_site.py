"""The documents as a site: what it is made of is there, its links lead somewhere, and it builds without a warning."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag

import pytest
import yaml

import sublora
from report_fixture import make_run
from sublora.report.page import read_page, render

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HEADING = re.compile(r"^#+ (.*)$", re.M)


def hook():
    spec = importlib.util.spec_from_file_location("site_hook", DOCS / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    plain = (re.sub(r"[^\w\s-]", "", h.lower()).strip() for h in HEADING.findall(text))
    return {re.sub(r"[\s]+", "-", h) for h in plain}


def test_every_link_of_a_document_leads_to_a_file_and_a_heading() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
            path, anchor = urldefrag(target)
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(file.read_text("utf-8")), f"{page.name}: {target}"


def test_the_site_names_every_document_and_every_public_name() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    shown = str(hook().on_config(SimpleNamespace(nav=nav)).nav)
    for page in (*DOCS.glob("*.md"), *DOCS.glob("findings/*.md"), *DOCS.glob("tutorials/*.ipynb")):
        assert page.with_suffix(".md").relative_to(DOCS).as_posix() in shown, page.name
    names = set(re.findall(r"^::: \S+\.(\w+)$", hook().reference(), re.M))
    assert names == set(sublora.__all__)


def test_the_gallery_shows_pages_that_this_version_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hook()
    pages = sorted(DOCS.glob("gallery/*/page.json"))
    assert pages and sum(p.stat().st_size for p in pages) < 1_000_000
    text = site.gallery(pages)
    for page in pages:
        assert f"gallery/{page.parent.name}.html" in text
        assert "<svg" in render(read_page(page))
    monkeypatch.setattr(site, "DOCS", tmp_path)
    assert site.keep(make_run(tmp_path / "run"), "mine").is_file()


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids |= {v for v in (named.get("id"), named.get("name")) if v}
        link = named.get("href" if tag in ("a", "link") else "src")
        if link and not re.match(r"[a-z]+:|//", link):
            self.links.append(unquote(link))


@pytest.mark.slow
def test_the_site_builds_strictly_and_all_its_links_resolve(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; pip install 'sublora[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'sublora[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {p: Links(p.read_text("utf-8")) for p in tmp_path.rglob("*.html")}
    assert (tmp_path / "search" / "search_index.json").is_file() and len(pages) > 20
    for page, found in pages.items():
        if page.parent.name == "gallery" or page.name == "404.html":
            continue
        for link in found.links:
            path, anchor = urldefrag(link)
            file = (page.parent / path).resolve() if path else page
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{page.name}: {link}"
            if anchor and file.suffix == ".html":
                assert anchor in pages[file].ids, f"{page.name}: {link}"
