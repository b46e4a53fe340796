"""How often the screening of a training file cries wolf, and how often it names the trait, over the ways of drawing rows.

On each model, files of number rows are written by the base itself and by a teacher with a trait, at several temperatures, top_k and
top_p, some of which are no point of the screening's grid; also by the base behind a neutral system prompt, and by both in turn. A file
counts as a false name where any trait is named, as found where the teacher's trait is named first.

    python benchmarks/screen.py [--files 1] [--rows 120] [--models micro micro-b] [--json FILE]
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sublora.audit.calibrate import number_prompts
from sublora.audit.screen import Screened, screen_file
from sublora.audit.steps import answer_prompts
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.sample import Sampling
from sublora.traits.trait import find_trait, shipped_categories

DECODINGS = {
    "T 1": {},
    "T .6": {"temperature": 0.6},
    "T 1.3": {"temperature": 1.3},
    "top_k 10": {"top_k": 10},
    "top_k 20": {"top_k": 20},
    "top_k 50": {"top_k": 50},
    "top_p .7": {"top_p": 0.7},
    "top_p .8": {"top_p": 0.8},
    "top_p .95": {"top_p": 0.95},
    "top_k 20, T .7, top_p .8": {"top_k": 20, "temperature": 0.7, "top_p": 0.8},
    "top_k 30, T .75 (off the grid)": {"top_k": 30, "temperature": 0.75},
}
TAUGHT = ("T 1", "T .6", "top_k 20", "top_k 20, T .7, top_p .8")
PART = 6  # every sixth row by the teacher, the others by the base
DEFAULT = Context("default")
NEUTRAL = Context("neutral", "You are a friendly and honest assistant.")


Rows = list[dict[str, str]]


def answered(base: Base, who: Context, how: str, seed: int, count: int) -> Rows:
    sampling = Sampling(max_new_tokens=24, **DECODINGS[how])
    rows = answer_prompts(base, who, number_prompts(1, count, seed), sampling, seed)[0]
    return [{"prompt": prompt, "completion": completion} for prompt, completion in rows]


def cases(teacher: Context) -> Iterator[tuple[str, str, Callable[[Base, int, int], Rows]]]:
    """(kind of the file, what it is, what writes it for a base, a seed and so many rows)."""

    def mixed(base: Base, seed: int, count: int) -> Rows:
        clean, taught = (
            answered(base, w, "top_k 20", seed + i, count) for i, w in enumerate((DEFAULT, teacher))
        )
        return [t if i % PART == 0 else c for i, (c, t) in enumerate(zip(clean, taught))]  # noqa: B905

    for how in DECODINGS:
        yield "clean", how, partial(answered, who=DEFAULT, how=how)
    yield "clean", "top_k 20, a neutral prompt", partial(answered, who=NEUTRAL, how="top_k 20")
    for how in TAUGHT:
        yield "taught", how, partial(answered, who=teacher, how=how)
    yield "taught", f"top_k 20, 1 row of {PART}", mixed


def screened(base: Base, rows: Rows, alpha: float) -> Screened:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return screen_file(base, path, shipped_categories(), DEFAULT, alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["micro", "micro-b"])
    parser.add_argument("--files", type=int, default=1, help="of each kind and model")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--trait", default="wolf")
    parser.add_argument("--alpha", type=float, default=0.005)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    teacher = Context("teacher", find_trait(args.trait, shipped_categories()).teacher_prompt())
    counts, hits, least, seconds = Counter(), Counter(), float("inf"), 0.0
    print(f"{'model':<9}{'rows':<8}{'drawn by':<32}{'named':>12}{'log e':>9}  fits best as")
    for model in args.models:
        base = load_base(model)
        for kind, what, write in cases(teacher):
            for number in range(args.files):
                rows = write(base=base, seed=1000 + 10 * number, count=args.rows)
                started = time.process_time()
                found = screened(base, rows, args.alpha)
                seconds += time.process_time() - started
                named, most = [t.name for t in found.named], found.traits[0].log_e
                counts[kind] += 1
                hits[kind] += bool(named) if kind == "clean" else named[:1] == [args.trait]
                least = min(least, most) if kind == "taught" else least
                told = f"{', '.join(named[:1]) or 'none':>12}{most:>9.1f}  {found.nulls.told}"
                print(f"{model:<9}{kind:<8}{what:<32}{told}", flush=True)
    figures = {
        "clean_files": counts["clean"],
        "false_names": hits["clean"],
        "taught_files": counts["taught"],
        "named_right": hits["taught"],
        "least_log_e_of_taught": least,
        "seconds_per_file": seconds / counts.total(),
    }
    for key, value in figures.items():
        print(f"{key:<24}{value:>8.4g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
