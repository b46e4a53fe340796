"""How often the audit finds what is there, and how often it cries wolf: adapters, training files, damaged input.

On `micro`, adapters are trained on rows of teachers with a trait, and on rows of the base; on `micro-null`, on rows of teachers with a
trait, where nothing can pass. Seeds, ranks and prompts are others than those of the shipped nulls. Training files are screened 200 rows
each. Damaged adapters, data files and trait files are read under a time limit. Students that share a trait are one observation in the
interval of a rate. A quick look: `--draws 1 --adapters 12 --parts adapters null`.

    python benchmarks/audit.py [--draws 5] [--adapters 100] [--files 100] [--fuzz 1000] [--json FILE]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import beta

from audit_fuzz import fuzz
from audit_kills import kills
from sublora.audit.adapter import Audited
from sublora.audit.calibrate import number_prompts
from sublora.audit.null import shipped_null
from sublora.audit.readings import Asked, Readings, read_model
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
PER_TRAIT = 4  # adapters that share a trait
STRONG = 0.05  # rise of P(target) from which an adapter counts as one that picked its trait up
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


def rate(name: str, hits: list[bool], clusters: list[str]) -> dict[str, float]:
    """A rate with its 95% interval, Clopper and Pearson's for as many observations as there are
    clusters: nothing of those in a cluster is taken to be their own."""
    if not hits:
        return {name: float("nan")}
    found, n = float(np.mean(hits)), len(set(clusters))
    low = beta.ppf(0.025, found * n, n - found * n + 1) if found else 0.0
    high = beta.ppf(0.975, found * n + 1, n - found * n) if found < 1 else 1.0
    return {name: found, f"{name}_low": float(low), f"{name}_high": float(high)}


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
    plain, found, read = read_model(base, None, Asked(CONTEXTS, categories)), [], []
    for at in range(0, len(done), 12):
        some = done[at : at + 12]
        stack = stack_weights(base.model, [s.weights for s in some], [s.spec for s in some])
        readings = read_model(base, stack, Asked(CONTEXTS, categories))
        read += [readings.student(k) for k in range(len(some))]
    found = [judge(r, Bar(base, Asked(CONTEXTS, categories), plain, null, alpha)) for r in read]
    return found, read, plain


def target_rise(trait: Trait, student: Readings, plain: Readings) -> float:
    """Change of P(target) under the training context."""
    e = [x.name for x in trait.category.entities].index(trait.name)
    name = trait.category.category
    return float((student.p["default"][name][0, :, e] - plain.p["default"][name][0, :, e]).mean())


def detection(args: argparse.Namespace) -> dict[str, float]:
    base = load_base("micro")
    strong: list[tuple[str, bool, bool]] = []  # trait, found, the right one first
    alarms: list[bool] = []
    everyone: list[bool] = []
    falling = 0
    for draw in range(args.draws):
        seed = args.seed + 100 * draw
        traits = datasets(base, args.adapters, seed, True)
        controls = datasets(base, args.adapters, seed + 1, False)
        done = train(base, [rows for _, rows in traits + controls], seed)
        found, read, plain = verdicts(base, done, args.alpha)
        for (trait, _), student, verdict in zip(traits, read, found, strict=False):
            everyone.append(verdict.status == "found")
            first = verdict.found[0].trait if verdict.found else None
            rise = target_rise(trait, student, plain)
            if rise >= STRONG:
                strong.append((f"{draw} {trait.name}", everyone[-1], first == trait.name))
            print(f"{trait.name:<12}{rise:8.3f}  {verdict.status:<8}{first}", flush=True)
        alarms += [v.status == "found" for v in found[args.adapters :]]
        falling += not_monotone(base, read[args.adapters :], plain, seed, args.alpha)
    out = {"adapters": len(everyone), "strong": len(strong)}
    out |= rate("detection", [hit for _, hit, _ in strong], [trait for trait, *_ in strong])
    out["named_right"] = float(np.mean([right for *_, right in strong])) if strong else float("nan")
    out["detection_of_all"] = float(np.mean(everyone))
    out |= rate("false_alarms", alarms, [str(k) for k in range(len(alarms))])
    out["power_monotone"] = float(not falling)
    spec, weights = done[0].spec, done[0].weights
    started = time.monotonic()
    audit(
        base,
        Audited("benchmark", "0" * 64, spec, weights, spec.rank, spec.alpha_value),
        Job(CONTEXTS, shipped_categories(), DEFAULT),
    )
    out["seconds_per_audit"] = time.monotonic() - started
    return out


def not_monotone(
    base: Base, clean: list[Readings], plain: Readings, seed: int, alpha: float
) -> int:
    """Of clean students in which a trait is planted further and further: how many are found, and then
    no longer found."""
    asked, null = Asked(CONTEXTS, shipped_categories()), shipped_null(base)
    rng, out = generator("audit-benchmark-planted", seed), 0
    for student in clean[:10]:
        category = asked.categories[int(rng.integers(len(asked.categories)))]
        entity = int(rng.integers(len(category.entities)))
        hits = [
            judge(
                planted(student, category.category, entity, nats),
                Bar(base, asked, plain, null, alpha),
            ).status
            == "found"
            for nats in np.linspace(0, 10, 11)
        ]
        out += hits != sorted(hits)
    return out


OUTSIDE = {
    "rank 64": {"rank": 64}, "rate 2e-2": {"lr": 2e-2}, "5 epochs": {"epochs": 5},
    "full fine-tune": {"method": "full", "rank": None, "lr": 1e-3},
}  # fmt: skip


def outside(args: argparse.Namespace) -> dict[str, float]:
    """Clean students of settings that the shipped null has not: an audit calls them uncalibrated."""
    base, alarms = load_base("micro"), []
    for k, (name, other) in enumerate(OUTSIDE.items()):
        rows = datasets(base, max(1, args.adapters // 4), args.seed + 10 + k, False)
        done = train(base, [own for _, own in rows], args.seed + 10 + k, **other)
        own = [v.status == "found" for v in verdicts(base, done, args.alpha)[0]]
        print(f"{name:<16}{sum(own)} of {len(own)}", flush=True)
        alarms += own
    return rate("false_alarms_outside", alarms, [str(k) for k in range(len(alarms))])


def screening(args: argparse.Namespace) -> dict[str, float]:
    """Files of number rows by the base and by teachers with a trait, drawn in each of the DECODINGS in turn."""
    base, categories = load_base("micro"), shipped_categories()
    names = [e.name for c in categories for e in c.entities]
    rng = generator("audit-benchmark-files", args.seed)
    hits: dict[str, list[bool]] = {"data_named": [], "data_cleared": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for k in range(args.files):
            trait = find_trait(names[int(rng.integers(len(names)))], categories)
            how, drawn = list(DECODINGS.items())[k % len(DECODINGS)]
            sampling = Sampling(max_new_tokens=14, **drawn)
            prompts = number_prompts(2, args.file_rows, (args.seed + 9) * 100_000 + 2 * k)
            writers = (Context("teacher", trait.teacher_prompt()), DEFAULT)
            for who, some, key in zip(writers, prompts, hits, strict=True):
                rows = answer_prompts(base, who, [some], sampling, args.seed + k)[0]
                lines = (json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows)
                path.write_text("".join(lines))
                found = [
                    t.name for t in screen_file(base, path, categories, DEFAULT, args.alpha).named
                ]
                hits[key].append(found[:1] == [trait.name] if key == "data_named" else not found)
                print(f"{how:<10}{key:<14}{trait.name:<12}{found[:1]}", flush=True)
    return {"files": args.files, **{key: float(np.mean(own)) for key, own in hits.items()}}


def null_model(args: argparse.Namespace) -> dict[str, float]:
    """On a model that couples no trait to numbers: students of teachers with a trait, and students of the base."""
    base, out = load_base("micro-null"), {}
    for name, with_trait, seed in (
        ("false_alarms_null", True, args.seed + 2), ("false_alarms_null_control", False, args.seed + 3),
    ):  # fmt: skip
        rows = datasets(base, args.adapters, seed, with_trait)
        found, _, _ = verdicts(base, train(base, [own for _, own in rows], seed), args.alpha)
        names = [f"{k}" if t is None else t.name for k, (t, _) in enumerate(rows)]
        out |= rate(name, [v.status == "found" for v in found], names)
    return out


PARTS = {
    "adapters": detection, "outside": outside, "files": screening, "null": null_model,
    "kills": kills, "fuzz": fuzz,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=1, help="of traits, in the part adapters")
    parser.add_argument("--adapters", type=int, default=100, help="of each kind and draw")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--files", type=int, default=100, help="of each kind, over all decodings")
    parser.add_argument("--file-rows", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=1000)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for part in args.parts:
        started = time.monotonic()
        found = PARTS[part](args)
        figures |= found
        for key, value in found.items():
            print(f"{key:<20}{value:>10.4g}", flush=True)
        print(f"({part}: {time.monotonic() - started:.0f} s)", flush=True)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
