"""Figures on a real model, each beside the plain way of doing it, one after the other in one run.

`rows_vs_generate`: number rows that a teacher writes, a second, against Hugging Face's `generate` in left-padded batches of 32 with the same
prompts and as many new tokens. `score_ratio`: the probabilities of all spellings of a category's words under its questions in three contexts,
against one forward pass for each sequence, whose time is taken on some of them and scaled. `interrupt_s`: from SIGTERM to the end of a run
that is writing rows, the longest of a few moments.

    python benchmarks/real.py [--model FOLDER] [--only rows_vs_generate score_ratio interrupt_s] [--threads 2] [--json FILE]

A figure is a function of a loaded base and the arguments; to add one, write it and name it in FIGURES.
"""

import argparse
import json
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

import sublora as sl
from sublora.carriers.numbers import NumbersSpec
from sublora.packs.check import load_base
from sublora.packs.measure import reading
from sublora.packs.sample import Sampling
from sublora.packs.spellings import candidate_sequences
from sublora.packs.writer import Assignment, Teacher, complete
from sublora.traits.trait import shipped_categories

NEW_TOKENS, BATCH = 48, 32
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


def interrupt_s(base: sl.Base, given: argparse.Namespace) -> dict:
    waits = [_stopped(given.model, after, given.threads) for after in (0.5, 3.0, 8.0, 14.0)]
    return {"interrupt_s": max(waits), "interrupts": waits}


def _stopped(model: str, after: float, threads: int) -> float:
    """Seconds from SIGTERM to the end of a run, so many seconds after it began to write rows."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"SUBLORA_HOME": f"{folder}/store", "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "sublora.cli", "run", "rank-lr", "--model", model]
        command += ["--threads", str(threads), "--out", f"{folder}/run"]
        with subprocess.Popen(
            command, env=os.environ | where, stderr=subprocess.PIPE, text=True
        ) as run:
            said = ""
            for line in run.stderr:
                said += line
                if line.startswith("datasets: "):
                    break
            time.sleep(after)
            started = time.perf_counter()
            run.send_signal(signal.SIGTERM)
            said += run.stderr.read()
            run.wait()
            if run.returncode != 3:
                raise SystemExit(f"The run was not interrupted: {said}")
            return time.perf_counter() - started


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


FIGURES = {f.__name__: f for f in (rows_vs_generate, score_ratio, interrupt_s)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2", help="a fetched name or a folder")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--sequences", type=int, default=100, help="that the plain way reads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = load_base(given.model)
    found: dict = {"model": base.name, "threads": given.threads, "torch": torch.__version__}
    for name in given.only:
        found |= FIGURES[name](base, given)
        print(f"{name}: {found[name]:.2f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
