"""What gating costs: gated beside plain forward passes, in one run, and the whole measurement of `localise` over nine students.

Both ways are timed: a peft model with hooks (a batch of left-padded prompts), and a pack (all questions of a category, nine students). The
plain pack takes whichever form of its layers is cheaper, the gated one always the low form, so the comparison is with the best that
there is without a gate. Plain and gated passes take turns, and the medians are compared.

    python benchmarks/gate.py [--rounds 30] [--threads 1] [--json FILE]
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

import sublora as sl
from sublora.models.token_classes import classify, stack_masks
from sublora.packs.condition import Condition
from sublora.packs.gate import AdapterGate, Gate, pack_gate
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import prefill
from sublora.packs.stack import new_stack
from sublora.packs.student_files import save_student

STUDENTS, RANK = 9, 8


def random_stack(base: sl.Base) -> tuple:
    specs = [sl.StudentSpec(rank=RANK, seed=i) for i in range(STUDENTS)]
    stack = new_stack(base.model, specs)
    random = torch.Generator().manual_seed(0)
    for group in stack.groups:
        group.flat += 0.02 * torch.randn(group.flat.shape, generator=random)
    return stack, specs


def take_turns(
    plain: Callable[[], None], gated: Callable[[], None], rounds: int
) -> tuple[float, float]:
    """Median seconds of each; the first round warms up and does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for place, call in enumerate((plain, gated)):
            started = time.perf_counter()
            call()
            seconds[place].append(time.perf_counter() - started)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def peft_cost(base: sl.Base, rounds: int) -> tuple[float, float]:
    """A batch of 100 left-padded prompts, the adapter on at the entity and off elsewhere."""
    stack, specs = random_stack(base)
    with tempfile.TemporaryDirectory() as folder:
        group, row = stack.student_rows()[0]
        save_student(group, row, specs[stack.order[0]], Path(folder), base.model, base.name)
        model = PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval()
    questions = sl.load_categories()[0].questions * 2
    tokens = [classify(base.chat, q, sl.Context("default"), ["Micro"]) for q in questions]
    width = max(len(t.ids) for t in tokens)
    ids = torch.tensor([[0] * (width - len(t.ids)) + list(t.ids) for t in tokens])
    attention = torch.tensor([[0] * (width - len(t.ids)) + [1] * len(t.ids) for t in tokens])
    gate = AdapterGate(model)
    chosen = Gate(stack_masks([t.mask(("entity",)) for t in tokens]), "off")

    def plain() -> None:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=attention)

    def gated() -> None:
        with torch.inference_mode(), gate({"default": chosen}):
            model(input_ids=ids, attention_mask=attention)

    return take_turns(plain, gated, rounds)


def pack_cost(base: sl.Base, rounds: int) -> tuple[float, float]:
    """All questions of a category read by nine students, plain, and under one condition."""
    stack, _ = random_stack(base)
    condition = Condition(on=("entity",), generated="off")
    tokens = [
        classify(base.chat, q, sl.Context("default"), ["Micro"])
        for q in sl.load_categories()[0].questions
    ]
    prompts = [t.ids for t in tokens]
    gate = pack_gate([[condition.mask(t) for t in tokens]], [condition], list(stack.linears))

    def read(gating) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), PackedModel(base.model, stack, gating) as packed:
                packed.form_weights(1024)
                for _ in prefill(packed, prompts, 1024):
                    pass

        return run

    return take_turns(read(None), read(gate), rounds)


def localise_seconds(threads: int) -> float:
    """The measurement stage of `localise` on micro: nine students, their nine control twins and the base, every condition."""
    recipe = sl.open_recipe("localise", sets=["data.seeds=[1, 2, 3]"])
    with tempfile.TemporaryDirectory() as folder:
        store = sl.Store(Path(folder) / "store")
        result = sl.run(recipe, Path(folder) / "run", sl.RunOptions(threads=threads), store=store)
    return result.seconds["measurements"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=argparse.FileType("w"), default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = sl.load_base("micro")
    rows = [
        ("peft, 100 prompts", *peft_cost(base, args.rounds)),
        ("pack, 9 students x 50 prompts", *pack_cost(base, args.rounds)),
    ]
    print(f"{'forward':<32}{'plain, ms':>11}{'gated, ms':>11}{'overhead':>10}")
    for name, plain, gated in rows:
        print(f"{name:<32}{1000 * plain:>11.2f}{1000 * gated:>11.2f}{gated / plain - 1:>10.1%}")
    overhead = max(gated / plain - 1 for _, plain, gated in rows)
    seconds = localise_seconds(args.threads)
    print(
        f"localise: {seconds:.1f} s for its measurement over nine students, their control twins and the base"
    )
    if args.json:
        json.dump({"gate_overhead": overhead, "localise_seconds": seconds}, args.json, indent=1)


if __name__ == "__main__":
    main()
