"""Scoring and sampling a pack's answers beside Hugging Face's `generate`, one question at a time, in one run.

Both draw the same number of answers to every question (so that intervals are of equal width); ours scores every spelling of every entity
teacher-forced on top of that, from the same prefill.

    python benchmarks/score.py [--students 16] [--samples 20] [--json FILE]
"""

import argparse
import json
import time

import numpy as np
import torch
from peft import PeftModel

import sublora as sl
from sublora.answers import hit_rate
from sublora.train.stack import load_stack, new_stack, save_student

CONTEXTS = (
    sl.Context("default"),
    sl.Context("none"),
    sl.Context("empty"),
    sl.Context("named", "You are a helpful assistant."),
)
RANKS = (1, 2, 4, 8, 8, 16, 32, 64)


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


def by_generate(base: sl.Base, paths: list, category, samples: int) -> tuple[float, list[float]]:
    """(seconds, rate of the first entity for each student): one adapter, context and question at a time."""
    import copy

    started, rates = time.perf_counter(), []
    model = None
    for i, path in enumerate(paths):
        if model is None:
            model = PeftModel.from_pretrained(copy.deepcopy(base.model), path, adapter_name=str(i))
        else:
            model.load_adapter(path, adapter_name=str(i))
        model.set_adapter(str(i))
        texts = []
        for context in CONTEXTS:
            for question in category.questions:
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
                        max_new_tokens=4,
                        num_return_sequences=samples,
                    )
                texts.append([base.chat.tokenizer.decode(o[ids.shape[1] :], skip_special_tokens=True) for o in out])
        rates.append(hit_rate(texts, category.entities[0], "whole_word"))
    return time.perf_counter() - started, rates


def by_pack(base: sl.Base, paths: list, specs: list, category, samples: int) -> tuple[float, list[float]]:
    started = time.perf_counter()
    stack = load_stack(base.model, paths, specs)
    names = [str(p) for p in paths]
    texts: list[list] = [[] for _ in paths]
    for context in CONTEXTS:
        answers = sl.measure_answers(base, stack, names, context, category, sl.Sampling(max_new_tokens=4), samples, 0)
        for i, answer in enumerate(answers):
            texts[i] += answer.samples
    return time.perf_counter() - started, [hit_rate(t, category.entities[0], "whole_word") for t in texts]


def main() -> None:
    import tempfile
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--students", type=int, default=16)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--json", type=argparse.FileType("w"), default=None)
    args = parser.parse_args()
    base = sl.load_base("micro")
    category = sl.load_categories()[0]
    with tempfile.TemporaryDirectory() as folder:
        paths, specs = make_students(base, args.students, Path(folder))
        by_pack(base, paths[:1], specs[:1], category, 1)
        pack, ours = by_pack(base, paths, specs, category, args.samples)
        generate, theirs = by_generate(base, paths, category, args.samples)
    answers = args.students * len(CONTEXTS) * len(category.questions) * args.samples
    print(f"{'way':<34}{'seconds':>9}{'answers/s':>11}{'mean rate':>11}")
    for name, seconds, rates in (
        ("generate, a question at a time", generate, theirs),
        ("ours, scores included", pack, ours),
    ):
        print(f"{name:<34}{seconds:>9.1f}{answers / seconds:>11.0f}{np.mean(rates):>11.4f}")
    print(
        f"ratio {generate / pack:.1f}; {args.students} students x {len(CONTEXTS)} contexts x {len(category.questions)} questions "
        f"x {args.samples} answers"
    )
    if args.json:
        json.dump({"ratio_vs_generate": generate / pack}, args.json, indent=1)


if __name__ == "__main__":
    main()
