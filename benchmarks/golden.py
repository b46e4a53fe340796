"""What ten recipes come to on the shipped models, kept so that a change of the code can be held against it.

    python benchmarks/golden.py make DIR                      run the recipes with the code that is installed
    python benchmarks/golden.py compare DIR                   run them again into DIR/again and print every difference
    python benchmarks/golden.py compare DIR --recipes traits  some of them only

Every run takes one thread, so that equal code gives equal bytes. Compared are: the ids of all artifacts and the hashes of their
files; the numbers of every table (the rows are matched by their labels; a column or a row that is new or gone is named); and the
verdicts. `make` goes on where it was interrupted. Exit code 1 where anything differs.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECIPES = (
    "rank-lr",
    "traits",
    "context-matrix",
    "localise",
    "steering-teacher",
    "optimizers",
    "unique-vs-repeated",
    "divergent-tokens",
    "judged",
    "aux-logits",
)
PORT = 38471  # fixed: the address of a judge is part of what its verdicts were made from
MODELS = ("micro", "micro-null")
ON_NULL = ("rank-lr", "traits", "steering-teacher")  # the hard negative control takes as long again
LABELS = {  # columns that say which row it is; the others are compared
    "results.csv": (
        "measurement_id",
        "kind",
        "trait",
        "target",
        "context",
        "condition",
        "student_id",
        "group",
        "name",
    ),
    "cells.csv": ("trait", "context", "method", "rank", "lr"),
    "arms.csv": None,
    "findings.csv": None,
    "optimizers.csv": None,
}


@contextmanager
def judge() -> Iterator[str]:
    """A judge on loopback that goes by a rule: the more long words an answer has, the fonder it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            score = sum(7 for word in text.split() if len(word) > 4) % 101
            raw = json.dumps(
                {"choices": [{"message": {"role": "assistant", "content": str(score)}}]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{PORT}/v1"
    finally:
        server.shutdown()


def make(folder: Path, recipes: tuple[str, ...]) -> None:
    environment = os.environ | {"SUBLORA_HOME": str(folder / "store"), "OMP_NUM_THREADS": "1"}
    with judge() as url:
        for recipe in recipes:
            for model in MODELS if recipe in ON_NULL else MODELS[:1]:
                out = folder / "runs" / model / recipe
                if (out / "golden-done").exists():
                    continue
                command = [
                    str(Path(sys.executable).parent / "sublora"),
                    "run",
                    recipe,
                    "--out",
                    str(out),
                    "--threads",
                    "1",
                ]
                if recipe != "aux-logits":
                    command += ["--model", model]
                if recipe == "judged":
                    command += ["--set", f"judge.url={url}", "--set", "judge.model=rule"]
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise SystemExit(
                        f"{recipe} on {model} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
                    )
                (out / "golden-done").write_text("")
                print(f"{recipe} on {model}: done", flush=True)


def artifacts(folder: Path) -> dict[str, dict[str, str]]:
    """artifact id -> file -> SHA-256."""
    return {
        path.parent.name: {
            name: entry["sha256"] for name, entry in json.loads(path.read_text())["files"].items()
        }
        for path in sorted((folder / "store" / "artifacts").glob("*/*/manifest.json"))
    }


def verdicts(run: Path) -> dict[tuple[str, str], str]:
    path = run / "verdicts.json"
    return (
        {(v["id"], v.get("trait") or ""): v["verdict"] for v in json.loads(path.read_text())}
        if path.exists()
        else {}
    )


def rows(path: Path) -> dict[tuple, dict[str, str]]:
    """The rows of a table by their labels; where labels leave two rows alike, by their order as well."""
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    found: dict[tuple, dict[str, str]] = {}
    labels = LABELS.get(path.name)
    for row in read:
        names = labels or [
            n for n, v in row.items() if not _is_number(v) or n in ("rank", "lr", "n")
        ]
        key = tuple((n, row.get(n, "")) for n in names)
        while key in found:
            key = (*key, ("again", ""))
        found[key] = row
    return found


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return not text
    return True


def table_differences(old: Path, new: Path) -> list[str]:
    if not new.exists():
        return [f"{old.name} is gone"]
    before, after = rows(old), rows(new)
    lines = [f"row gone: {key}" for key in before.keys() - after.keys()]
    lines += [f"row new: {key}" for key in after.keys() - before.keys()]
    for key in before.keys() & after.keys():
        for column in before[key].keys() & after[key].keys():
            if before[key][column] != after[key][column]:
                lines.append(f"{key} {column}: {before[key][column]} -> {after[key][column]}")
    first = next(iter(before.values()), {}).keys()
    second = next(iter(after.values()), {}).keys()
    if first != second:
        lines.append(f"columns gone {sorted(first - second)}, new {sorted(second - first)}")
    return [f"{old.name}: {line}" for line in lines]


def compare(folder: Path, recipes: tuple[str, ...]) -> int:
    again = folder / "again"
    make(again, recipes)
    lines = []
    whole = recipes == RECIPES
    old, new = artifacts(folder), artifacts(again)
    lines += [f"artifact gone: {i}" for i in sorted(old.keys() - new.keys()) if whole]
    lines += [f"artifact new: {i}" for i in sorted(new.keys() - old.keys())]
    for i in sorted(old.keys() & new.keys()):
        lines += [
            f"artifact {i}: {name} differs"
            for name in sorted(old[i].keys() | new[i].keys())
            if old[i].get(name) != new[i].get(name)
        ]
    equal = len(old.keys() & new.keys())
    tables = count = 0
    for model in MODELS:
        for recipe in recipes:
            was, now = folder / "runs" / model / recipe, again / "runs" / model / recipe
            if not was.exists():
                continue
            for path in sorted(was.glob("*.csv")):
                tables += 1
                lines += [
                    f"{recipe} on {model}: {line}"
                    for line in table_differences(path, now / path.name)
                ]
            before, after = verdicts(was), verdicts(now)
            count += len(before)
            for key in sorted(before.keys() | after.keys()):
                if before.get(key) != after.get(key):
                    lines.append(
                        f"{recipe} on {model}: verdict {key}: {before.get(key)} -> {after.get(key)}"
                    )
    print("\n".join(lines))
    print(
        f"{equal} artifacts, {tables} tables and {count} verdicts compared; {len(lines)} differences."
    )
    return 1 if lines else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["make", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    given = parser.parse_args()
    if given.task == "make":
        make(given.folder, tuple(given.recipes))
        return 0
    return compare(given.folder, tuple(given.recipes))


if __name__ == "__main__":
    raise SystemExit(main())
