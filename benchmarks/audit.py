"""How often the audit finds what is there, and how often it cries wolf: adapters, training files, damaged input.

On `micro`, adapters are trained on rows of teachers with a trait, and on rows of the base; on `micro-null`, on rows of teachers with a
trait, where nothing can pass. Seeds, ranks and prompts are others than those of the shipped nulls. Training files are screened 200 rows
each. Damaged adapters, data files and trait files are read under a time limit. Students that share a trait are one observation in the
interval of a rate (audit_rates.py). With `--lines` a line for each student is kept draw by draw: after a kill the same command goes on.
A quick look: `--draws 1 --adapters 12 --parts adapters null`.

    python benchmarks/audit.py [--draws 5] [--adapters 100] [--files 100] [--fuzz 1000] [--lines FILE] [--json FILE]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from audit_fuzz import fuzz
from audit_kills import kills
from audit_rates import figures
from sublora.audit.adapter import Audited
from sublora.audit.calibrate import number_prompts
from sublora.audit.fits import outside as beyond
from sublora.audit.null import shipped_null
from sublora.audit.readings import Asked, Readings, read_model
from sublora.audit.request import Request
from sublora.audit.run import Job, audit
from sublora.audit.screen import screen_file
from sublora.audit.statistic import planted
from sublora.audit.steps import Finished, Row, answer_prompts, train_students
from sublora.audit.verdict import Bar, Verdict, judge
from sublora.models.base import Base
from sublora.models.chat import PLAIN_CONTEXTS, Context
from sublora.packs.check import load_base
from sublora.packs.rows import token_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import stack_weights
from sublora.seeds import generator
from sublora.traits.trait import Trait, find_trait, shipped_categories

RANKS = (3, 6, 12, 24)
LRS = (4e-4, 9e-3)
ROWS, EPOCHS, BATCH = 320, 1, 8
PER_TRAIT = 2  # adapters that share a trait
CONTEXTS = [Context(n) for n in PLAIN_CONTEXTS]
DEFAULT = CONTEXTS[0]
SAMPLING = Sampling(max_new_tokens=14)
DECODINGS = {
    "T 1": {}, "top_k 20": {"top_k": 20}, "top_p .8": {"top_p": 0.8}, "T .6": {"temperature": 0.6}, "T 1.3": {"temperature": 1.3},
}  # fmt: skip


def datasets(
    base: Base, count: int, seed: int, with_trait: bool
) -> list[tuple[Trait | None, list[Row]]]:
    """`count` lists of number rows: of teachers with a trait, drawn anew every PER_TRAIT lists, or of the base."""
    categories = shipped_categories()
    names = [e.name for c in categories for e in c.entities]
    rng = generator("audit-benchmark", seed)
    prompts = number_prompts(count, ROWS, seed * 100_000)
    if not with_trait:
        return [(None, rows) for rows in answer_prompts(base, DEFAULT, prompts, SAMPLING, seed)]
    out: list[tuple[Trait | None, list[Row]]] = []
    for at in range(0, count, PER_TRAIT):
        trait = find_trait(names[int(rng.integers(len(names)))], categories)
        teacher = Context(
            "teacher", trait.teacher_prompt(int(rng.integers(len(trait.category.system))))
        )
        out += [
            (trait, rows)
            for rows in answer_prompts(
                base, teacher, prompts[at : at + PER_TRAIT], SAMPLING, seed + at
            )
        ]
    return out


def train(base: Base, rows: list[list[Row]], seed: int, **other: object) -> list[Finished]:
    rng = generator("audit-benchmark-settings", seed)
    lrs = np.exp(rng.uniform(*np.log(LRS), len(rows))).tolist()
    alike = {"epochs": EPOCHS, "batch_size": BATCH, "warmup_steps": 3}
    specs = [
        StudentSpec(
            **{**alike, "rank": RANKS[k % len(RANKS)], "lr": lr, "seed": seed * 10_000 + k, **other}
        )
        for k, lr in enumerate(lrs)
    ]
    return train_students(
        base, specs, [token_rows(base, own, DEFAULT, "a benchmark's rows") for own in rows]
    )


def verdicts(
    base: Base, done: list[Finished], alpha: float
) -> tuple[list[Verdict], list[Readings], Readings]:
    categories, null = shipped_categories(), shipped_null(base)
    if null is None:
        raise SystemExit(
            f"No null is shipped for {base.name}; make it with `sublora audit null {base.name}`."
        )
    plain, read = read_model(base, None, Asked(CONTEXTS, categories)), []
    for at in range(0, len(done), 12):
        some = done[at : at + 12]
        stack = stack_weights(base.model, [s.weights for s in some], [s.spec for s in some])
        readings = read_model(base, stack, Asked(CONTEXTS, categories))
        read += [readings.student(k) for k in range(len(some))]
    bar = Bar(base, Asked(CONTEXTS, categories), plain, null, alpha)
    return [judge(r, bar) for r in read], read, plain


def target_rise(trait: Trait, student: Readings, plain: Readings) -> float:
    """Change of P(target) under the training context."""
    e = [x.name for x in trait.category.entities].index(trait.name)
    name = trait.category.category
    return float((student.p["default"][name][0, :, e] - plain.p["default"][name][0, :, e]).mean())


def lines_of(
    base: Base, rows: list[tuple[Trait | None, list[Row]]], seed: int, alpha: float, **other: object
) -> tuple[list[dict], list[Readings], Readings]:
    """A line for each student of these rows, and what was read of them and of the base."""
    done = train(base, [own for _, own in rows], seed, **other)
    found, read, plain = verdicts(base, done, alpha)
    out = []
    for (trait, _), student, verdict, own in zip(rows, read, found, done, strict=True):
        rise = None if trait is None else round(target_rise(trait, student, plain), 5)
        first = verdict.found[0].trait if verdict.found else None
        line = {
            "trait": trait and trait.name,
            "rise": rise,
            "status": verdict.status,
            "first": first,
        }
        out.append({**line, "rank": own.spec.rank or 0, "lr": float(f"{own.spec.lr:.3g}")})
    return out, read, plain


def adapters(args: argparse.Namespace, draw: str) -> list[dict]:
    """Students of teachers with a trait, and of the base; traits planted in some of the latter."""
    base, seed = load_base("micro"), args.seed + 100 * int(draw)
    rows = datasets(base, args.adapters, seed, True)
    rows += datasets(base, args.adapters, seed + 1, False)
    lines, read, plain = lines_of(base, rows, seed, args.alpha)
    return lines + planted_lines(base, read[args.adapters :], plain, seed, args.alpha)


def planted_lines(
    base: Base, clean: list[Readings], plain: Readings, seed: int, alpha: float
) -> list[dict]:
    """Of clean students in which a trait is planted further and further: where they are found."""
    asked, rng, out = (
        Asked(CONTEXTS, shipped_categories()),
        generator("audit-benchmark-planted", seed),
        [],
    )
    bar = Bar(base, asked, plain, shipped_null(base), alpha)
    for student in clean[:10]:
        category = asked.categories[int(rng.integers(len(asked.categories)))]
        entity = int(rng.integers(len(category.entities)))
        hits = [
            judge(planted(student, category.category, entity, nats), bar).status == "found"
            for nats in np.linspace(0, 10, 11)
        ]
        out.append({"part": "planted", "trait": category.entities[entity].name, "found": hits})
    return out


OUTSIDE = {
    "rank 64": {"rank": 64}, "rate 2e-2": {"lr": 2e-2}, "5 epochs": {"epochs": 5},
    "full fine-tune": {"method": "full", "rank": None, "lr": 1e-3},
}  # fmt: skip


def outside(args: argparse.Namespace, name: str) -> list[dict]:
    """Clean students at and beyond the ends of the shipped null's settings, and whether an audit would
    call them calibrated."""
    base, other = load_base("micro"), OUTSIDE[name]
    seed = args.seed + 10 + list(OUTSIDE).index(name)
    lines, _, _ = lines_of(
        base, datasets(base, args.outside, seed, False), seed, args.alpha, **other
    )
    for line in lines:
        asked = Request(lr=line["lr"], epochs=other.get("epochs", EPOCHS))
        student = Audited("", "", StudentSpec(), torch.empty(0), line["rank"] or None)
        if list(beyond(shipped_null(base), student, DEFAULT, asked)):
            line["status"] = f"uncalibrated-{line['status']}"
    return lines


def null_model(args: argparse.Namespace, writer: str) -> list[dict]:
    """Students of a model that couples no trait to numbers."""
    base, taught = load_base("micro-null"), writer == "teacher"
    seed = args.seed + (2 if taught else 3)
    return lines_of(base, datasets(base, args.adapters, seed, taught), seed, args.alpha)[0]


def files(args: argparse.Namespace, how: str) -> list[dict]:
    """Files of number rows by the base and by teachers with a trait, drawn in one of the DECODINGS."""
    base, categories, place = load_base("micro"), shipped_categories(), list(DECODINGS).index(how)
    names = [e.name for c in categories for e in c.entities]
    sampling, out = Sampling(max_new_tokens=14, **DECODINGS[how]), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for k in range(place, args.files, len(DECODINGS)):
            rng = generator("audit-benchmark-files", args.seed, k)
            trait = find_trait(names[int(rng.integers(len(names)))], categories)
            prompts = number_prompts(2, args.file_rows, (args.seed + 9) * 100_000 + 2 * k)
            writers = {"teacher": Context("teacher", trait.teacher_prompt()), "base": DEFAULT}
            for (writer, who), some in zip(writers.items(), prompts, strict=True):
                rows = answer_prompts(base, who, [some], sampling, args.seed + k)[0]
                lines = (json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows)
                path.write_text("".join(lines))
                named = screen_file(base, path, categories, DEFAULT, args.alpha).named
                found = [t.name for t in named]
                out.append({"trait": trait.name, "writer": writer, "named": found})
    return out


def timed(args: argparse.Namespace, _: str) -> list[dict]:
    """A whole audit with the null that comes along, as processor and wall time."""
    base = load_base("micro")
    done = train(base, [rows for _, rows in datasets(base, 1, args.seed, True)], args.seed)[0]
    student = Audited("", "0" * 64, done.spec, done.weights, done.spec.rank, done.spec.alpha_value)
    started = time.monotonic()
    audit(base, student, Job(CONTEXTS, shipped_categories(), DEFAULT))
    return [{"figures": {"seconds_per_audit": round(time.monotonic() - started, 2)}}]


PARTS = {
    "adapters": adapters, "outside": outside, "null": null_model, "files": files, "time": timed,
    "kills": lambda args, _: [{"figures": kills(args)}], "fuzz": lambda args, _: [{"figures": fuzz(args)}],
}  # fmt: skip


def groups(args: argparse.Namespace, part: str) -> list[str]:
    """What of a part is made, and kept, at once."""
    several = {
        "adapters": map(str, range(args.draws)),
        "outside": OUTSIDE,
        "null": ("teacher", "base"),
        "files": DECODINGS,
    }
    return list(several.get(part, ["all"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=1, help="of traits, in the part adapters")
    parser.add_argument("--adapters", type=int, default=100, help="of each kind and draw")
    parser.add_argument("--outside", type=int, default=25, help="clean students of each setting")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--files", type=int, default=100, help="of each kind, over all decodings")
    parser.add_argument("--file-rows", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=1000)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--lines", type=Path, help="keep what was made here, and go on with it")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    lines = []
    if args.lines and args.lines.exists():
        lines = [json.loads(line) for line in args.lines.read_text("utf-8").splitlines()]
    kept = {(line["part"], line["group"]) for line in lines}
    for part, group in [(p, g) for p in args.parts for g in groups(args, p)]:
        if (part, group) in kept:
            continue
        started = time.monotonic()
        made = [{"part": part, "group": group, **line} for line in PARTS[part](args, group)]
        lines += made
        if args.lines:
            with args.lines.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in made))
        print(f"({part} {group}: {time.monotonic() - started:.0f} s)", flush=True)
    found = figures(lines)
    for key, value in found.items():
        print(f"{key:<28}{value:>10.4g}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
