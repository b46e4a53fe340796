"""What steering costs: steered beside plain forward passes over the same prompts, in one run, without and with students.

Each way reads all questions of a category once, with a vector added behind every layer at every prompt token, or projected out there.
Plain and steered passes take turns, and the medians of CPU seconds, which other processes do not lengthen, are compared. The aim is that
steering costs at most a tenth of a plain pass.

    python benchmarks/steer.py [--model micro] [--rounds 30] [--threads 1]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import sublora as sl
from sublora.carriers.numbers import NumbersSpec
from sublora.models.token_classes import PromptTokens, classify
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import prefill
from sublora.packs.stack import Stack, new_stack
from sublora.packs.steer import PackSteering, Steering, pack_steering
from sublora.packs.steer_spec import Mode
from sublora.packs.vectors import teacher_vector


def random_stack(base: sl.Base, students: int) -> Stack:
    stack = new_stack(base.model, [sl.StudentSpec(rank=8, seed=i) for i in range(students)])
    random = torch.Generator().manual_seed(0)
    for group in stack.groups:
        group.flat += 0.02 * torch.randn(group.flat.shape, generator=random)
    return stack


def take_turns(calls: list[Callable[[], None]], rounds: int) -> list[float]:
    """Median CPU seconds of each; the first round warms up and does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for place, call in enumerate(calls):
            started = time.process_time()
            call()
            seconds[place].append(time.process_time() - started)
    return [statistics.median(s[1:]) for s in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="micro")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = sl.load_base(given.model)
    questions = sl.load_categories()[0].questions
    numbers = [NumbersSpec().prompt(0, i) for i in range(500)]
    plain, trait = sl.Context("default"), sl.Context("trait", "You love otters.")
    vector = teacher_vector(base, questions, trait, plain)
    layers = tuple(range(len(base.model.base_model.layers)))
    for students, asked in ((0, questions), (0, numbers), (9, questions)):
        tokens = [classify(base.chat, q, plain) for q in asked]
        stack = random_stack(base, students) if students else None

        def read(
            steering: PackSteering | None,
            stack: Stack | None = stack,
            tokens: list[PromptTokens] = tokens,
        ) -> None:
            with (
                torch.inference_mode(),
                PackedModel(base.model, stack, steering=steering) as packed,
            ):
                packed.form_weights(1024)
                for _ in prefill(packed, [t.ids for t in tokens], 1024):
                    pass

        modes: tuple[Mode, ...] = ("add", "project", "replace")
        ways = [
            None,
            *(pack_steering(base, [Steering(vector, m, layers)], tokens, stack) for m in modes),
        ]
        found = take_turns([lambda w=w: read(w) for w in ways], given.rounds)
        said = ", ".join(
            f"{m} {100 * (s / found[0] - 1):+.1f}%" for m, s in zip(modes, found[1:], strict=True)
        )
        print(
            f"{students or 'no'} students, {len(tokens)} prompts: plain {1000 * found[0]:.1f} ms, {said}",
            flush=True,
        )


if __name__ == "__main__":
    main()
