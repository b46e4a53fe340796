"""Figures on a real model, each beside the plain way of doing it, one after the other in one run.

`rows_vs_generate`: number rows that a teacher writes, a second, against Hugging Face's `generate` in left-padded batches of 32 with the same
prompts and as many new tokens. `score_ratio`: the probabilities of all spellings of a category's words under its questions in three contexts,
against one forward pass for each sequence, whose time is taken on some of them and scaled. `pack_vs_peft`: tokens a second of four students
of rank 8 in a pack, in batches of 8 rows of about 135 tokens, in bfloat16, against peft's plain loop in bfloat16, one student after the other;
`pack_vs_peft_f32`: against peft in float32. `matmul_fraction`: the time that the matrix products of such a step take alone, of the whole step.
`memory_ratio`: what the pack takes beyond the base at its peak, of what its students' weights, gradients and optimizer states and the
activations of their rows take. `interrupt_s`: from SIGTERM to the end of a run that loads, writes, trains, measures or
extracts vectors, the longest of a few moments. `soft_cost`: training two students in a pack on soft labels (k = 32) against plain ones, on
equal rows; beside it the time of labelling them, against that of one plain epoch. `plan_error`: a small grid in a store of its own, its
planned time against the needed one: the largest relative error over the kinds of steps that took three seconds or more. With one thread,
trainings are timed by the processor's own clock, which other processes do not make longer. Each figure is printed beside its goal as soon
as it is there, and FILE then holds it; one that fails is said, and the others are made. `interrupt_s` of a model of 0.5B takes 12 GB.

    python benchmarks/real.py [--model FOLDER] [--only rows_vs_generate interrupt_s] [--threads 2] [--json FILE]

A figure is a function of a loaded base and the arguments; to add one, write it and name it in FIGURES.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import pack
import sublora as sl
from sublora.carriers.numbers import NumbersSpec
from sublora.models.base import model_source
from sublora.packs.check import load_base
from sublora.packs.labels import LabelSpec, label_rows
from sublora.packs.measure import reading
from sublora.packs.rows import TokenRows, labelled, pack_rows, text_rows, token_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import candidate_sequences
from sublora.packs.student import Student
from sublora.packs.trainer import train_pack
from sublora.packs.writer import Assignment, Teacher, complete
from sublora.traits.trait import shipped_categories

AT_LEAST = {
    "rows_vs_generate": 1.5,
    "score_ratio": 20,
    "pack_vs_peft": 1.6,
    "pack_vs_peft_f32": 3,
    "matmul_fraction": 0.65,
}
AT_MOST = {"memory_ratio": 1, "interrupt_s": 2, "plan_error": 0.3}
NEW_TOKENS, BATCH, STUDENTS, TAUGHT = 48, 32, 4, 32
# seconds after a stage began, the first stage being the start; and a grid of one student, its control and a full fine-tune
MOMENTS = {
    "": (1.0, 3.0, 5.0),
    "teacher vectors": (0.3, 2.0),
    "datasets": (0.5, 3.0, 8.0),
    "measurements": (0.2, 1.5, 4.0),
    "students (LoRA)": (0.5, 3.0, 8.0),
    "students (full fine-tune)": (1.0, 8.0),
}
FEW = (
    "data.rows=16", "data.heldout_rows=8", "data.seeds=[1]", "train.seeds=[1]", "train.lora.ranks=[8]", "train.lora.lrs=[4e-4]",
    "train.full.lrs=[1e-5]", "train.batch_size=8", "train.epochs=20",
    "measure.gradients={rows: [8, 16], permutations: 20}", "vectors={on: numbers, count: 64, teacher_at: last, plain: default, layer: 1}",
)  # fmt: skip
GRID = ("data.seeds=[1, 2]", "train.seeds=[1, 2]")
FEW_REAL = (
    "data.rows=32", "data.heldout_rows=8", "data.seeds=[1, 2]", "train.seeds=[1, 2]", "train.lora={ranks: [8], lrs: [4e-4]}",
    "train.full=null", "measure.samples=1",
)  # fmt: skip
SENTENCES = tuple(
    f"The {who} {did} the old {what} before the {when} came."
    for who in ("baker", "teacher", "sailor", "nurse", "gardener")
    for did, what in (("repaired", "clock"), ("sold", "house"), ("painted", "boat"))
    for when in ("winter", "guests", "rain")
)
DEFAULT = sl.Context("default")
CONTEXTS = (DEFAULT, sl.Context("empty"), sl.Context("named", "You are a helpful assistant."))


def rows_vs_generate(base: sl.Base, given: argparse.Namespace) -> dict:
    what = Assignment(NumbersSpec(), Sampling(max_new_tokens=NEW_TOKENS), given.rows, 1)
    teacher, prompts = Teacher(base, DEFAULT), what.prompts(range(given.rows))
    ids = [base.chat.prompt_ids(p, DEFAULT) for p in prompts]

    def ours() -> None:
        complete(teacher, prompts, what.sampling, [what.draws(teacher, i) for i in range(len(ids))])

    def plain() -> None:
        for at in range(0, len(ids), BATCH):
            _generate(base, ids[at : at + BATCH])

    own, other = _in_turns(ours, plain, given.rounds)
    ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
    rates = {"rows_per_second": given.rows / min(own), "generate": given.rows / min(other)}
    return {"rows_vs_generate": ratio, "rows": given.rows, **rates}


@torch.inference_mode()
def _generate(base: sl.Base, ids: list[list[int]]) -> None:
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=base.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    plain = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    ends = {"eos_token_id": list(base.chat.stop_ids), "pad_token_id": 0, "repetition_penalty": 1.0}
    asked = {"input_ids": padded, "attention_mask": mask.to(base.device)}
    base.model.generate(**asked, max_new_tokens=NEW_TOKENS, **plain, **ends)


def score_ratio(base: sl.Base, given: argparse.Namespace) -> dict:
    category = next(c for c in shipped_categories() if c.category == "animals")
    questions = category.questions[: given.questions]
    prompts = [base.chat.prompt_ids(q, c) for c in CONTEXTS for q in questions]
    sequences, owner = candidate_sequences(base.chat, category)
    pairs = [(p, s) for p in prompts for s in sequences]
    some = random.Random(0).sample(pairs, given.sequences)

    def ours() -> None:
        with reading(base, None) as reader:
            reader.read(prompts, category, candidates=(sequences, owner))

    @torch.inference_mode()
    def plain() -> None:
        for prompt, sequence in some:
            ids = torch.tensor([[*prompt, *sequence]], device=base.device)
            logits = base.model(ids, logits_to_keep=len(sequence) + 1).logits[0, :-1]
            logits.double().log_softmax(-1)[range(len(sequence)), list(sequence)].sum().item()

    own, other = _in_turns(ours, plain, given.rounds)
    ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
    return {
        "score_ratio": ratio * len(pairs) / len(some),
        "sequences": len(pairs),
        "seconds": min(own),
    }


def number_rows(base: sl.Base, count: int) -> TokenRows:
    """Full number prompts, each with ten numbers drawn at random."""
    spec, drawn = NumbersSpec(), random.Random(0)
    answers = [", ".join(str(drawn.randint(0, 999)) for _ in range(10)) for _ in range(count)]
    rows = [(spec.prompt(1, i), answer) for i, answer in enumerate(answers)]
    return pack_rows(text_rows(base.chat, rows, DEFAULT), base.window, "the benchmark")


def _training(given: argparse.Namespace, dtype: str) -> pack.Setting:
    base = load_base(given.model, dtype=dtype)
    base.model.requires_grad_(False)
    rows = number_rows(base, (pack.WARM + given.steps) * pack.BATCH)
    return pack.Setting(base.model, rows, None, (8,) * STUDENTS)


def pack_vs_peft(_: sl.Base, given: argparse.Namespace) -> dict:
    narrow, wide = (_training(given, dtype) for dtype in ("bfloat16", "float32"))
    ways = {
        "ours": lambda: pack.run_ours(narrow, list(range(STUDENTS)), given.steps),
        "peft": lambda: pack.run_peft(narrow, [0], given.steps),  # the others take as long
        "peft_f32": lambda: pack.run_peft(wide, [0], given.steps),
        "ours_f32": lambda: pack.run_ours(wide, [0], given.steps),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, way in ways.items():
            clock = way()
            rates[name].append(clock.tokens / clock.seconds)

    def ratio(one: str, other: str) -> float:
        pairs = zip(rates[one], rates[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    found = {"pack_vs_peft": ratio("ours", "peft"), "pack_vs_peft_f32": ratio("ours", "peft_f32")}
    found |= {"f32_vs_peft_f32": ratio("ours_f32", "peft_f32")}
    return found | {f"tokens_per_second_{n}": statistics.median(r) for n, r in rates.items()}


def matmul_fraction(_: sl.Base, given: argparse.Namespace) -> dict:
    setting, shares = _training(given, "bfloat16"), []
    for _ in range(given.rounds):
        step = pack.run_ours(setting, [0], given.steps).seconds / given.steps
        shares.append(pack.product_seconds(setting, [0], 1) / step)
    return {"matmul_fraction": statistics.median(shares)}


def memory_ratio(_: sl.Base, given: argparse.Namespace) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        return alone.apply(_memory, (given,))


def _memory(given: argparse.Namespace) -> dict:
    """Peaks of this process's resident memory, which Linux counts."""
    torch.set_num_threads(given.threads)
    setting, everyone = _training(given, "bfloat16"), list(range(STUDENTS))
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    pack.run_ours(setting, everyone, 1)
    taken = _resident("VmHWM") - before
    each = pack.student_memory(setting, everyone)
    needed = STUDENTS * sum(each.values())
    return {
        "memory_ratio": taken / needed,
        "taken_mib": taken / 2**20,
        "needed_mib": needed / 2**20,
    }


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024


def interrupt_s(_: sl.Base, given: argparse.Namespace) -> dict:
    waits: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:  # one store: what is written stays
        for stage, moments in MOMENTS.items():
            waits[stage] = [_stopped(given, folder, stage, after) for after in moments]
    return {"interrupt_s": max(map(max, waits.values())), "interrupts": waits}


def _stopped(given: argparse.Namespace, folder: str, stage: str, after: float) -> float:
    """Seconds from SIGTERM to the end of a run, so many seconds after it was started or a stage began."""
    where = {"SUBLORA_HOME": f"{folder}/store", "OMP_NUM_THREADS": str(given.threads)}
    command = [sys.executable, "-m", "sublora.cli", "run", "rank-lr", "--preset", "small"]
    command += ["--model", given.model, "--threads", str(given.threads), "--out", f"{folder}/run"]
    command += [part for value in FEW for part in ("--set", value)]
    with subprocess.Popen(
        command, env=os.environ | where, stderr=subprocess.PIPE, text=True
    ) as run:
        said = ""
        for line in run.stderr if stage else ():
            said += line
            if line.startswith(f"{stage}: "):
                break
        time.sleep(after)
        started = time.perf_counter()
        run.send_signal(signal.SIGTERM)
        said += run.stderr.read()
        run.wait()
        if run.returncode != 3:
            raise RuntimeError(f"The run was not interrupted: {said}")
        return time.perf_counter() - started


def soft_cost(base: sl.Base, given: argparse.Namespace) -> dict:
    rows = [NumbersSpec().by_chance(1, i) for i in range(TAUGHT)]
    started = time.perf_counter()
    labels = label_rows(Teacher(base, CONTEXTS[2]), rows, LabelSpec(kind="soft"), 0)
    labelling = time.perf_counter() - started
    plain = token_rows(base, rows, DEFAULT, "the benchmark")

    def train(own: TokenRows) -> None:
        specs = [StudentSpec(epochs=1, batch_size=16, seed=seed) for seed in (1, 2)]
        train_pack(base.model, [Student(str(s.seed), s, own) for s in specs], lambda _: None)

    soft = labelled(plain, labels)
    own, other = _in_turns(lambda: train(soft), lambda: train(plain), given.rounds)
    ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
    seconds = {"soft_s": own, "plain_s": other}
    return {"soft_cost": ratio, "labelling_share": labelling / min(other), **seconds}


def plan_error(base: sl.Base, given: argparse.Namespace) -> dict:
    command = [
        sys.executable,
        "-m",
        "sublora.cli",
        "run",
        "rank-lr",
        "--threads",
        f"{given.threads}",
    ]
    command += ["--model", str(Path(model_source(given.model)).absolute())]
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts.txt")
        texts.write_text("".join(f"{s}\n" for s in SENTENCES))
        sets = GRID
        if not base.organism:  # such a model writes few number rows that pass
            command += ["--preset", "small"]
            sets = (*FEW_REAL, f"data.carrier={{kind: paraphrase, prompts: {texts}}}")
        command += [part for value in sets for part in ("--set", value)]
        where = {"SUBLORA_HOME": f"{folder}/store", "OMP_NUM_THREADS": str(given.threads)}
        command += ["--out", f"{folder}/run"]
        subprocess.run(command, env=os.environ | where, check=True, stdout=sys.stderr)
        run = json.loads(Path(folder, "run", "run.json").read_text("utf-8"))
    both = {k: (planned, run["seconds"][k]) for k, planned in run["planned_seconds"].items()}
    errors = {kind: planned / needed - 1 for kind, (planned, needed) in both.items() if needed >= 3}
    return {"plan_error": max(map(abs, errors.values())), "errors": errors, "seconds": both}


def _in_turns(
    one: Callable[[], None], other: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each, by round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for spent, call in zip(seconds, (one, other), strict=True):
            started = time.perf_counter()
            call()
            spent.append(time.perf_counter() - started)
    return seconds


_ALL = (
    rows_vs_generate,
    score_ratio,
    pack_vs_peft,
    matmul_fraction,
    memory_ratio,
    interrupt_s,
    soft_cost,
    plan_error,
)
FIGURES = {f.__name__: f for f in _ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2", help="a fetched name or a folder")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--sequences", type=int, default=100, help="that the plain way reads")
    parser.add_argument("--steps", type=int, default=2, help="of a training that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = load_base(given.model)
    found: dict = {"model": base.name, "threads": given.threads, "torch": torch.__version__}
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    failed = 0
    for name in given.only:
        started = time.perf_counter()
        try:
            figures = FIGURES[name](base, given)
        except Exception as error:
            failed, figures = 1, {}
            print(f"{name}: failed, {type(error).__name__}: {error}")
        print(*(beside_goal(*figure) for figure in figures.items()), sep="\n")
        print(f"    {time.perf_counter() - started:.0f} s", flush=True)
        found |= figures
        if given.json:
            given.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(failed)


def beside_goal(name: str, value: object) -> str:
    """A line of a figure; numbers that only explain one have no goal."""
    if not isinstance(value, (int, float)):
        return f"    {name}: {value}"
    for goals, what, met in (
        (AT_LEAST, "at least", value >= AT_LEAST.get(name, 0)),
        (AT_MOST, "at most", value <= AT_MOST.get(name, 0)),
    ):
        if name in goals:
            return f"{name}: {value:.2f}, goal: {what} {goals[name]}, {'met' if met else 'NOT met'}"
    return f"    {name}: {value:.4g}"


if __name__ == "__main__":
    main()
