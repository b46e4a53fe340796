"""What people meet: wrong inputs and what is said of them, the time from a clone to a page, and pages in a browser.

    python benchmarks/people.py                              300 wrong inputs, drawn anew with --seed N
    python benchmarks/people.py --page runs/demo/report.html ...   console, network, contrast, names and keys of pages, in Chromium
    python benchmarks/people.py --clone                      make demo in a fresh clone (installs packages: minutes)

A wrong input is answered clearly by exit code 2, one sentence that names what is wrong, no words of libraries, and nothing left behind.
"""

import argparse
import contextlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from unittest.mock import patch

from wrong_inputs import Files, Wrong, drawn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

# What no user should have to read.
FOREIGN = re.compile(
    r"Input should|Value error|\[Errno|NoneType|has no attribute|<class|KeyError|TypeError|validation error|pydantic|object at 0x"
)
LONGEST = 700  # characters of a sentence
WIDTHS = ((1400, "light", False), (1400, "dark", False), (390, "light", True))


class Accepted(Exception):
    """A wrong input came as far as the work."""


def refuse_work() -> contextlib.ExitStack:
    """Nothing is trained, audited or fetched in here."""
    from sublora.audit import run as audit
    from sublora.audit import selftest
    from sublora.organisms import make
    from sublora.runner import run

    def accepted(*_: object, **__: object) -> None:
        raise Accepted

    stack = contextlib.ExitStack()
    places = [
        (run, "setup_of"),
        (audit, "Examined"),
        (make, "train_organism"),
        (selftest, "run_selftest"),
    ]
    for module, name in places:
        if hasattr(module, name):
            stack.enter_context(patch.object(module, name, accepted))
    return stack


def answer(words: list[str]) -> tuple[int | str, str]:
    """Exit code, or what was raised, and standard error of a command in this process."""
    from sublora.cli.entry import run_command

    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["sublora", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            return run_command(), err.getvalue()
        except Accepted:
            return "accepted", err.getvalue()
        except BaseException:
            return "traceback", err.getvalue() + traceback.format_exc()


def why_unclear(wrong: Wrong, code: int | str, said: str, left: list[Path]) -> str | None:
    """What is wrong with an answer; None for a clear one."""
    sentence = said.partition("Error: ")[2].strip()
    if code != 2:
        return f"exit code {code}"
    if said.count("Error: ") != 1:
        return "no one sentence"
    if found := FOREIGN.search(said):
        return f"says {found[0]!r}"
    if len(sentence) > LONGEST:
        return f"{len(sentence)} characters"
    if not any(word and word.lower() in sentence.lower() for word in wrong.named):
        return "does not name it"
    return f"left {left[0].name}" if left else None


def wrong_inputs(count: int, seed: int) -> dict[str, int]:
    from audit_fixture import idle_adapter
    from sublora.packs.check import load_base

    unclear = tracebacks = 0
    with tempfile.TemporaryDirectory() as folder, refuse_work():
        files = Files(Path(folder), lambda path: idle_adapter(load_base("micro"), path))
        work = files.root / "work"
        work.mkdir()
        os.chdir(work)
        found = drawn(files, seed, count)
        for wrong in found:
            code, said = answer(wrong.words)
            why = why_unclear(wrong, code, said, list(work.iterdir()))
            tracebacks += code == "traceback" or "Traceback" in said
            if why:
                unclear += 1
                shown = " ".join(wrong.words).replace(folder, "~")
                print(
                    f"{why} ({wrong.source}): {shown}\n    {said.strip().replace(folder, '~')[-600:]}"
                )
        os.chdir(ROOT)
    return {"wrong_inputs": len(found), "unclear": unclear, "tracebacks": tracebacks}


def pages(paths: list[Path]) -> dict[str, int]:
    """What pages say to the console, ask of the network, and show with too little contrast."""
    from browser import (
        CONTRAST,
        SHOW_ALL,
        SPILLS,
        UNNAMED,
        UNREACHED,
        Browser,
        binary,
        not_tabbed,
        requests,
        said,
    )

    scripts = {"low_contrast": CONTRAST, "reach_beyond_the_window": SPILLS}
    scripts |= {"without_a_name": UNNAMED, "not_reached_by_keys": UNREACHED}
    if (chromium := binary()) is None:
        sys.exit("No Chromium is installed.")
    errors, asked, found = 0, set(), Counter()
    with tempfile.TemporaryDirectory() as profile:
        opened = Browser(chromium, Path(profile))
        for path in paths:
            opened.open(path.resolve())
            opened.evaluate(SHOW_ALL)
            for width, scheme, mobile in WIDTHS:
                opened.show(width, 900, scheme, mobile)
                at = {name: opened.evaluate(script) for name, script in scripts.items()}
                if width == 1400 and scheme == "light":
                    at["not_reached_by_keys"] += not_tabbed(opened)
                for name, all_of_it in at.items():
                    found[name] += len(all_of_it)
                    for what in all_of_it:
                        print(f"{path} at {width} px, {scheme}, {name}: {what}")
            errors += len(said(opened.events))
            asked |= requests(opened.events) - {path.resolve().as_uri()}
        opened.close()
    return {
        "pages": len(paths),
        "console_errors": errors,
        "network_requests": len(asked),
        **found,
    }


def clone_to_page() -> dict[str, float]:
    """Seconds from `git clone` to the page of `make demo`, by the clock and of processors: packages are installed and all students trained."""
    with tempfile.TemporaryDirectory() as folder:
        own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        own |= {"SUBLORA_HOME": f"{folder}/store"}  # nothing that was made before is used
        started = time.monotonic()
        subprocess.run(["git", "clone", "-q", str(ROOT), f"{folder}/clone"], check=True)
        subprocess.run(
            ["make", "demo"], cwd=f"{folder}/clone", check=True, stdout=sys.stderr, env=own
        )
        if not Path(f"{folder}/clone/runs/demo/report.html").is_file():
            sys.exit("make demo left no page.")
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = {"": time.monotonic() - started, "processor_": spent.ru_utime + spent.ru_stime}
        return {f"clone_to_page_{of}s": round(s, 1) for of, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="wrong inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, nargs="*", default=[], help="pages to open")
    parser.add_argument("--clone", action="store_true", help="time make demo in a fresh clone")
    parser.add_argument("--json", type=Path, help="put the figures among those of this file")
    given = parser.parse_args()
    shown = [path.resolve(strict=True) for path in given.page]
    figures: dict[str, float | None] = wrong_inputs(given.count, given.seed) if given.count else {}
    figures |= pages(shown) if shown else {}
    figures |= clone_to_page() if given.clone else {}
    print(json.dumps(figures, indent=1))
    if given.json:
        kept = json.loads(given.json.read_text()) if given.json.is_file() else {}
        given.json.write_text(json.dumps(kept | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
