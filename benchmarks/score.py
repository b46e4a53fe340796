"""Scoring a pack's answers beside Hugging Face's `generate`, one adapter, context and question at a time, in one run.

A rate from S sampled answers to each of Q questions has an interval that is wider than that of the exact probabilities, by the noise of
sampling. `generate` would have to draw as many answers as make its interval at most 5% wider; it draws those, or `--most` where they are
more (its interval is then still the wider one, and the ratio a lower bound), and once more as few as ours does. Its time is taken on
some of the students and scaled, as every student takes it alike.

    python benchmarks/score.py [--students 16] [--generate-students 2] [--samples 20] [--json FILE]
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from scipy.stats import t

import sublora as sl
from sublora.packs.stack import new_stack
from sublora.packs.student_files import load_stack, save_student
from sublora.traits.answers import hit_rate

CONTEXTS = (
    sl.Context("default"),
    sl.Context("none"),
    sl.Context("empty"),
    sl.Context("named", "You are a helpful assistant."),
)
RANKS = (1, 2, 4, 8, 8, 16, 32, 64)
NEW_TOKENS = 4


def make_students(base: sl.Base, count: int, folder) -> tuple[list, list[sl.StudentSpec]]:
    """Adapters with random B, so that they answer differently."""
    specs = [sl.StudentSpec(rank=RANKS[i % len(RANKS)], seed=i) for i in range(count)]
    stack = new_stack(base.model, specs)
    paths = [folder / str(i) for i in range(count)]
    for place, (group, row) in enumerate(stack.student_rows()):
        i = stack.order[place]
        random = torch.Generator().manual_seed(i)
        for name, view in group.views.items():
            if name.endswith("lora_B"):
                view[row] = 0.02 * torch.randn(view[row].shape, generator=random)
        paths[i].mkdir()
        save_student(group, row, specs[i], paths[i], base.model, base.name)
    return paths, specs


def by_generate(base: sl.Base, paths: list, category, samples: int) -> tuple[float, np.ndarray]:
    """(seconds, rate of the first entity (students, contexts, questions)): one adapter, context and question at a time."""
    model = None
    rates = np.zeros((len(paths), len(CONTEXTS), len(category.questions)))
    started = time.perf_counter()
    for i, path in enumerate(paths):
        if model is None:
            model = PeftModel.from_pretrained(copy.deepcopy(base.model), path, adapter_name=str(i))
        else:
            model.load_adapter(path, adapter_name=str(i))
        model.set_adapter(str(i))
        for c, context in enumerate(CONTEXTS):
            for q, question in enumerate(category.questions):
                ids = torch.tensor([base.chat.prompt_ids(question, context)])
                with torch.inference_mode():
                    out = model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        do_sample=True,
                        temperature=1.0,
                        top_p=1.0,
                        top_k=0,
                        repetition_penalty=1.0,
                        max_new_tokens=NEW_TOKENS,
                        num_return_sequences=samples,
                    )
                texts = [
                    base.chat.tokenizer.decode(o[ids.shape[1] :], skip_special_tokens=True)
                    for o in out
                ]
                rates[i, c, q] = hit_rate([texts], category.entities[0], "first_word")
    return time.perf_counter() - started, rates


def by_pack(
    base: sl.Base, paths: list, specs: list, category, samples: int
) -> tuple[float, np.ndarray]:
    """(seconds, probability of the first entity (students, contexts, questions)), with sampled answers on top."""
    started = time.perf_counter()
    stack, names = load_stack(base.model, paths, specs), [str(p) for p in paths]
    sampling, out = sl.Sampling(max_new_tokens=NEW_TOKENS), []
    for context in CONTEXTS:
        answers = sl.measure_answers(
            base, stack, names, category, sl.Asking(context, sampling, samples, 0)
        )
        out.append(np.stack([a.p[:, 0] for a in answers]))
    return time.perf_counter() - started, np.stack(out, 1)


def width(rates: np.ndarray) -> float:
    """The mean over students and contexts of the width of the rate's 95% interval over questions."""
    count = rates.shape[-1]
    return float(np.mean(2 * t.ppf(0.975, count - 1) * rates.std(-1, ddof=1) / np.sqrt(count)))


def answers_needed(p: np.ndarray, wider: float = 1.05) -> int:
    """Answers a question until sampling makes the interval at most `wider` times as wide: var(p) + mean(p (1 - p)) / S."""
    between, within = p.var(-1, ddof=1).mean(), (p * (1 - p)).mean()
    return int(np.ceil(within / between / (wider**2 - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--students", type=int, default=16)
    parser.add_argument("--generate-students", type=int, default=2)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument(
        "--most", type=int, default=100, help="answers a question that generate draws at most"
    )
    parser.add_argument("--json", type=argparse.FileType("w"), default=None)
    args = parser.parse_args()
    base = sl.load_base("micro")
    category = sl.load_categories()[0]
    with tempfile.TemporaryDirectory() as folder:
        paths, specs = make_students(base, args.students, Path(folder))
        by_pack(base, paths[:1], specs[:1], category, 1)
        some = paths[: args.generate_students]
        exact, p = by_pack(base, paths, specs, category, 0)
        sampled, _ = by_pack(base, paths, specs, category, args.samples)
        needed = answers_needed(p)
        drawn = min(needed, args.most)
        scale = args.students / len(some)
        few, few_rates = (
            x * f
            for x, f in zip(
                by_generate(base, some, category, args.samples), (scale, 1), strict=True
            )
        )
        many, many_rates = (
            x * f for x, f in zip(by_generate(base, some, category, drawn), (scale, 1), strict=True)
        )
    ours = width(p[: len(some)])
    print(
        f"{args.students} students x {len(CONTEXTS)} contexts x {len(category.questions)} questions; generate timed on {len(some)} of them"
    )
    print(f"{'way':<46}{'seconds':>9}{'interval / ours':>17}{'mean rate':>11}")
    for name, seconds, rates in (
        ("ours, exact probabilities", exact, p[: len(some)]),
        (f"ours, and {args.samples} answers a question", sampled, p[: len(some)]),
        (f"generate, {args.samples} answers a question", few, few_rates),
        (f"generate, {drawn} answers a question", many, many_rates),
    ):
        print(f"{name:<46}{seconds:>9.2f}{width(rates) / ours:>17.2f}{rates.mean():>11.4f}")
    print(
        f"at equal interval width {many / exact:.0f} times faster; with the same {args.samples} answers {few / sampled:.1f} times"
    )
    if args.json:
        figures = {
            "ratio_vs_generate": many / exact,
            "ratio_vs_generate_same_answers": few / sampled,
        }
        json.dump(figures, args.json, indent=1)


if __name__ == "__main__":
    main()
