"""Wrong inputs, drawn anew from the command line's own parameters, from recipes, and from the files that commands read.

Each is a command with exactly one thing wrong, and the words of which one has to be in the answer.
"""

import copy
import inspect
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import typer
import yaml

from sublora.cli.app import app
from sublora.experiments.document import read_document, shipped_recipes

DATA = Path(__file__).parent.parent / "tests" / "data"
# Commands that are right but for what is drawn; those that need files or a network are left out.
COMMANDS = {
    "run": ["rank"],
    "plan": ["rank"],
    "prereg": ["rank"],
    "ls": ["recipes"],
    "fetch": ["smollm2"],
    "contexts": ["micro"],
    "report": ["RUN"],
    "compare": ["RUN", "RUN"],
    "verdict": ["CSV"],
    "organism make": ["micro"],
    "parity": ["http://localhost:9/v1", "--served", "x", "--model", "micro"],
    "store verify": [],
    "store gc": [],
    "store du": [],
    "audit": ["--base", "micro", "--adapter", "ADAPTER"],
    "audit selftest": [],
    "audit null": ["micro", "--out", "null.json"],
}
# Texts that are wrong for what a parameter is called.
TEXTS = {
    "recipe": ["rank-lrr", "", "no-such.yaml", "DIR"],
    "model": ["mikro", "", "DIR", "no/such/folder/here", "file.gguf"],
    "base": ["mikro", "DIR", "EMPTY"],
    "trait": ["oter", "cat-dog", ""],
    "preset": ["bigg", "", "Micro"],
    "sets": [
        "epochs",
        "=3",
        "train.epoch=2",
        "data.rows=many",
        "data.rows=[1",
        "train.lora.ranks=0",
        "measure.samples=0",
        "traits=otter",
    ],
    "what": ["recipe", "", "cats"],
    "name": ["mikro", "", "gpt"],
    "device": ["gpu9", "", "tpu"],
    "budget": ["soon", "-3h", "", "90"],
    "url": ["ftp://x", "localhost", ""],
    "context": ["noequals", "=text", "none=x", "a="],
    "diff": ["default nowhere"],
    "entity": ["zebrafish"],
    "ranks": ["a,b", "0,1", ""],
    "asked_in": ["nowhere"],
    "training_context": ["nowhere"],
    "serving_context": ["nowhere"],
    "dtype": ["float7"],
}
SECTIONS = ("", "data", "train", "measure", "train.lora", "data.carrier", "data.sampling")


class Wrong(NamedTuple):
    """A command, the words of which one has to be in its answer, and where it came from."""

    words: list[str]
    named: tuple[str, ...]
    source: str


class Files:
    """Files in a new folder that commands are given."""

    def __init__(self, root: Path, make_adapter: Callable[[Path], Path]) -> None:
        self.root, self.count = root, 0
        self.adapter = make_adapter(root / "adapter")
        self.csv = (DATA / "published_ranks.csv").read_text("utf-8")
        self.known = {"DIR": root / "folder", "EMPTY": root / "empty", "ADAPTER": self.adapter}
        for name in ("folder", "empty", "run"):
            (root / name).mkdir()
        (root / "folder" / "readme.txt").write_text("nothing")
        (root / "run" / "run.json").write_text("{}")
        self.known |= {"RUN": root / "run", "CSV": self.new("right.csv", self.csv)}
        self.file = self.new("here.txt", b"\xff\xfe\x00 no text")

    def new(self, name: str, content: str | bytes) -> Path:
        self.count += 1
        path = self.root / f"{self.count}-{name}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def put(self, words: list[str]) -> list[str]:
        return [str(self.known.get(word, word)) for word in words]


def _commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    def walk(group: typer.Typer, path: tuple[str, ...]) -> Iterator[tuple[str, Callable[..., Any]]]:
        for command in group.registered_commands:
            name = command.name or command.callback.__name__
            yield " ".join((*path, name)), command.callback
        if path and group.registered_callback:
            yield " ".join(path), group.registered_callback.callback
        for inner in group.registered_groups:
            yield from walk(inner.typer_instance, (*path, inner.name))

    return walk(app, ())


def _parts(annotation: Any) -> tuple[Any, Any]:
    """(type of one value, what typer knows of the parameter)."""
    kind, info = annotation, None
    if get_origin(annotation) is Annotated:
        kind, *more = get_args(annotation)
        info = next((m for m in more if type(m).__name__.endswith("Info")), None)
    inner = (
        [a for a in get_args(kind) if a is not type(None)]
        if get_origin(kind) is not Literal
        else []
    )
    if get_origin(kind) is tuple:
        return kind, info
    return (_parts(inner[0])[0] if inner else kind), info


def _values(name: str, kind: Any, info: Any, files: Files) -> list[str]:
    """Values that are wrong for a parameter."""
    if getattr(info, "parser", None) is not None:
        out = ["", "/proc/nowhere/there"]
        return [*out, str(files.file)] if "folder" in info.parser.__name__ else [*out, "DIR"]
    least = getattr(info, "min", None)
    below = [f"{least - 1:g}"] if least is not None else []
    if kind is int:
        return ["three", "2.5", *below]
    if kind is float:
        return ["fast", "1,5", *below]
    if kind is Path:
        return ["no/such/thing", "", str(files.file)]
    if get_origin(kind) is Literal:
        return [get_args(kind)[0] + "x", ""]
    return TEXTS.get(name, [])


def of_parameters(files: Files, draw: random.Random) -> Iterator[Wrong]:
    """Each parameter of each command with a wrong value, names of options that are mistyped, and arguments too few and too many."""
    for path, callback in _commands():
        if path not in COMMANDS:
            continue
        right = [*path.split(), *files.put(COMMANDS[path])]
        for name, parameter in inspect.signature(callback).parameters.items():
            kind, info = _parts(parameter.annotation)
            if info is None or name == "as_json":
                continue
            yield from _of_parameter(path, right, name, kind, info, files, draw)
        yield Wrong([*right, "--no-such-option"], ("--no-such-option",), "option")
        first = len(path.split())
        until = next((i for i, w in enumerate(right) if w.startswith("--")), len(right))
        if until > first:
            left = [*right[:first], *right[until:]]
            yield Wrong(left, ("Missing", "Give", "needs"), "missing")


def _of_parameter(
    path: str, right: list[str], name: str, kind: Any, info: Any, files: Files, draw: random.Random
) -> Iterator[Wrong]:
    if type(info).__name__ == "ArgumentInfo":
        for value in _values(name, kind, info, files):
            words = files.put([value])
            yield Wrong(
                [*path.split(), *words, *right[len(path.split()) + 1 :]],
                (*filter(None, words), "argument"),
                "argument",
            )
        return
    flags = [flag for flag in info.param_decls or () if flag.startswith("--")]
    flag = flags[0] if flags else "--" + name.replace("_", "-")
    at = draw.randrange(3, len(flag)) if len(flag) > 4 else 3
    yield Wrong([*right, flag[:at] + "q" + flag[at:]], (flag, "No such option"), "option")
    if kind is bool:
        yield Wrong([*right, f"{flag}=maybe"], (flag,), "flag")
        return
    yield Wrong([*right, flag], (flag,), "option")
    for value in _values(name, kind, info, files):
        words = value.split() if name == "diff" else files.put([value])
        told = (*(w for w in words if w), flag, name, flag.strip("-").replace("-", " "))
        yield Wrong([*right, flag, *words], told, "option")


def _places(values: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*at, str(key))
            yield from _places(value, (*at, str(key)))


def of_recipes(files: Files, draw: random.Random, count: int) -> Iterator[Wrong]:
    """Recipes with one wrong value, key or line, planned from a file or by --set."""
    names = sorted(shipped_recipes())
    for _ in range(count):
        name = draw.choice(names)
        values = copy.deepcopy(read_document(name).values)
        places = [p for p in _places(values) if ".".join(p[:-1]) in SECTIONS and p[0] != "name"]
        path, kind = (
            draw.choice(places),
            draw.choice(["key", "value", "value", "value", "text", "set"]),
        )
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        old = inner[path[-1]]
        wrong = _wrong_value(old, draw)
        if kind == "set":
            shown = json.dumps(wrong)
            yield Wrong(
                ["plan", name, "--set", f"{'.'.join(path)}={shown}"],
                (".".join(path), path[-1]),
                "set",
            )
            continue
        if kind == "key":
            inner[f"{path[-1]}q"] = inner.pop(path[-1])
        elif kind == "value":
            inner[path[-1]] = wrong
        text = yaml.safe_dump(values, sort_keys=False)
        if kind == "text":
            text = _broken(text, draw)
        file = files.new(f"{name}.yaml", text)
        named = (file.name,) if kind == "text" else (path[-1], f"{path[-1]}q")
        yield Wrong(["plan", str(file)], named, f"recipe {kind}, {'.'.join(path)}: {wrong!r}")


def _wrong_value(old: Any, draw: random.Random) -> Any:
    """A value that is none of what stands there."""
    if isinstance(old, bool):
        return draw.choice(["perhaps", [1, 2], 7])
    if isinstance(old, int | float):
        return draw.choice(["many", [old, {}], {"a": old}, -7.5])
    if isinstance(old, list):
        return draw.choice([{"a": 1}, 3.5, [[]], [{"q": 1}]])
    if isinstance(old, dict):
        return draw.choice([7, "a text", [1, 2]])
    return draw.choice([{"a": 1}, [{"q": 2}]])


def _broken(text: str, draw: random.Random) -> str:
    lines = text.splitlines()
    at = draw.choice([n for n, line in enumerate(lines) if re.match(r"\w+: ?", line)])
    how = draw.randrange(5)
    if how == 0:
        lines[at] = "\t" + lines[at]
    elif how == 1:
        lines[at] += ": ["
    elif how == 2:
        lines.insert(0, "title: twice\ntitle: twice")
    elif how == 3:
        return text[: len(text) // 2] + "\x00" + text[len(text) // 2 :]
    else:
        return draw.choice(["", "- a\n- b\n", "just a text\n", "5\n"])
    return "\n".join(lines)


def of_tables(files: Files, draw: random.Random, count: int) -> Iterator[Wrong]:
    """CSV files of results with one wrong cell, column or form."""
    wrong = {
        "rank": ["two", "0", "-4", "1.5"],
        "lr": ["fast", "0", "-1e-4", "nan"],
        "rate": ["high", "1.7", "-0.1", "inf"],
        "n": ["0", "-3", "many"],
        "base": ["none", "2", "-1"],
        "seeds": ["0", "x", "-1"],
    }
    head, *rows = [line.split(",") for line in files.csv.strip().splitlines()]
    for _ in range(count):
        column, table = draw.choice(list(wrong)), copy.deepcopy(rows)
        table[draw.randrange(len(table))][head.index(column)] = draw.choice(wrong[column])
        lines, form = [",".join(row) for row in (head, *table)], draw.randrange(6)
        if form == 0:
            lines = [
                ",".join(v for v, name in zip(row, head, strict=True) if name != column)
                for row in (head, *rows)
            ]
        if form == 1:
            lines = [
                line.replace(",", draw.choice([";", "\t", " "])) for line in lines[:1]
            ] + lines[1:]
        file = files.new("table.csv", "\n".join(lines) + "\n")
        yield Wrong(["verdict", str(file)], (column, file.name), "table")


def of_audits(files: Files, draw: random.Random, count: int) -> Iterator[Wrong]:
    """Adapters and training files with one thing wrong."""
    rows = [json.dumps({"prompt": "Say a word.", "completion": f"oak {n}"}) for n in range(4)]
    bad_rows = [
        "{",
        "[1]",
        "7",
        '{"prompt": 3, "completion": "x"}',
        '{"text": 5}',
        '{"question": "a"}',
        "\x00",
    ]
    config = json.loads((files.adapter / "adapter_config.json").read_text())
    settings = {
        "r": [0, "4", -1, 1e9, None],
        "lora_alpha": ["x", 0, -2],
        "peft_type": ["IA3", None, 7],
        "bias": ["all"],
        "use_dora": [True],
    }
    for number in range(count):
        audit = ["audit", "--base", "micro", "--no-where"]
        if number % 2:
            lines = copy.copy(rows)
            lines.insert(draw.randrange(4), draw.choice(bad_rows))
            file = files.new("rows.jsonl", draw.choice(["\n".join(lines), "", "\n\n", "no json"]))
            yield Wrong(
                [*audit, "--adapter", str(files.adapter), "--data", str(file)], (file.name,), "data"
            )
            continue
        folder = files.root / f"adapter-{number}"
        shutil.copytree(files.adapter, folder)
        key = draw.choice([*settings, "weights"])
        if key == "weights":
            weights = folder / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[: draw.choice([0, 7, 100, -1])])
        else:
            value = draw.choice(settings[key])
            (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        yield Wrong([*audit, "--adapter", str(folder)], (folder.name,), "adapter")


def drawn(files: Files, seed: int, count: int) -> list[Wrong]:
    """So many wrong inputs: two fifths of parameters, two of recipes, the rest of tables and audits."""
    draw = random.Random(seed)
    parameters = list(of_parameters(files, draw))
    draw.shuffle(parameters)
    rest = count - (chosen := min(len(parameters), count * 2 // 5))
    recipes, tables = count * 2 // 5, count // 10
    found = [
        *parameters[:chosen],
        *of_recipes(files, draw, recipes),
        *of_tables(files, draw, tables),
    ]
    return [*found, *of_audits(files, draw, rest - recipes - tables)]
