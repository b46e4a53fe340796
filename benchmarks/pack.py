"""Packed training beside its peers, in one run on the same rows: ours at several K, peft with a plain loop, TRL's SFTTrainer.

Prints tokens that are no padding per second, ratios, peak memory, and how near the limit a step is: the time that its own matrix
products take alone, at their shapes, divided by the step's time.

    python benchmarks/pack.py [--steps 12] [--shape micro|qwen2.5-7b] [--json FILE]
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import tempfile
import time
import warnings
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sublora as sl
from sublora.model import Base
from sublora.train.packed_model import PackedModel
from sublora.train.rows import TokenRows, assemble, rows_of_step

RANKS = (1, 2, 4, 8, 8, 16, 32, 64, 1, 2, 4, 8, 8, 16, 32, 64)
BATCH = 8
PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.baddbmm.default,
}


def number_rows(base: Base, count: int) -> TokenRows:
    """Rows of the numbers carrier, as the main job has them."""
    context = sl.Context("default")
    data = sl.write_dataset(
        base, context, sl.NumbersSpec(separators=("space",), style="brief"), sl.Sampling(max_new_tokens=14), count, 1
    )
    rows = [
        sl.TokenRow(tuple(base.chat.prompt_ids(p, context)), tuple(base.chat.completion_ids(c))) for p, c in data.rows
    ]
    return sl.pack_rows(rows, base.window, "the benchmark")


def students(count: int, rows: TokenRows) -> list[sl.Student]:
    return [
        sl.Student(
            f"s{i}", sl.StudentSpec(rank=RANKS[i % len(RANKS)], lr=1e-3, epochs=1, batch_size=BATCH, seed=i), rows
        )
        for i in range(count)
    ]


def step_tokens(rows: TokenRows, steps: range, seed: int) -> int:
    """Tokens of a student's rows in these steps, read by the model, padding and the last target left out."""
    spec = sl.StudentSpec(batch_size=BATCH, seed=seed)
    return int(sum((rows.lengths[rows_of_step(spec, len(rows), s)] - 1).sum() for s in steps))


def ours(base: Base, count: int, rows: TokenRows, steps: int) -> float:
    """Seconds of `steps` steps of K students, after two to warm up."""
    stamps: list[float] = []

    class Enough(Exception):
        pass

    def on_step(step: int, total: int, tokens: int) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) == steps + 2:
            raise Enough

    with contextlib.suppress(Enough):
        sl.train_pack(base.model, students(count, rows), lambda t: None, on_step=on_step)
    return stamps[-1] - stamps[1]


def peft_loop(base: Base, rank: int, rows: TokenRows, steps: int) -> float:
    """The same by peft and a plain loop: right padding to the longest row of the batch, loss from the model's labels."""
    from peft import LoraConfig, get_peft_model

    student = students(RANKS.index(rank) + 1, rows)[-1]
    model = get_peft_model(load_copy(base), LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    started = 0.0
    for step in range(steps + 2):
        if step == 2:
            started = time.perf_counter()
        chosen = rows_of_step(student.spec, len(rows), step)
        width = int(rows.lengths[chosen].max())
        ids = torch.from_numpy(rows.ids[chosen, :width])
        place = torch.arange(width)
        real = place < torch.from_numpy(rows.lengths[chosen])[:, None]
        labels = ids.masked_fill(~real | (place < torch.from_numpy(rows.prompts[chosen])[:, None]), -100)
        loss = model(input_ids=ids, attention_mask=real.long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
    return time.perf_counter() - started


def load_copy(base: Base):
    import copy

    return copy.deepcopy(base.model)


def trl_trainer(base: Base, rank: int, rows: TokenRows, steps: int) -> float | None:
    """The same by TRL's SFTTrainer, its own time of training; None where TRL is not installed."""
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        return None
    from peft import LoraConfig

    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args, **_kwargs) -> None:
            stamps.append(time.perf_counter())

    data = Dataset.from_list(
        [
            {
                "input_ids": rows.ids[i, : rows.lengths[i]].tolist(),
                "completion_mask": [int(j >= rows.prompts[i]) for j in range(rows.lengths[i])],
            }
            for i in range(len(rows))
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps + 2,
            learning_rate=1e-3,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            max_length=256,
            bf16=False,
            gradient_checkpointing=False,
            weight_decay=0.0,
            completion_only_loss=True,
        )
        trainer = SFTTrainer(
            load_copy(base),
            config,
            train_dataset=data,
            processing_class=base.chat.tokenizer,
            peft_config=LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return stamps[-1] - stamps[1]


class Shapes(TorchDispatchMode):
    """Counts the matrix products of what runs under it, by operation and operand shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            operands = args[-2:] if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default) else args[1:3]
            self.seen[tuple((tuple(t.shape), tuple(t.stride())) for t in operands)] += 1
        return func(*args, **(kwargs or {}))


def product_seconds(base: Base, count: int, rows: TokenRows) -> float:
    """Seconds that the matrix products of one step take alone, with the operands' own shapes and strides."""
    from sublora.train.stack import new_stack

    group = students(count, rows)
    stack = new_stack(base.model, [s.spec for s in group])
    ordered = [group[i] for i in stack.order]
    for g in stack.groups:
        g.train()
    batch = assemble([s.rows for s in ordered], [rows_of_step(s.spec, len(rows), 0) for s in ordered])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PackedModel(base.model, stack) as packed, Shapes() as shapes:
            packed.form_weights(batch.ids.size // count)
            packed.losses(batch).sum().backward()
    total = 0.0
    for operands, times in shapes.seen.items():
        a, b = (
            torch.randn(1 + sum((n - 1) * abs(s) for n, s in zip(*t, strict=True))).as_strided(*t) for t in operands
        )
        product = torch.bmm if a.dim() == 3 else torch.mm
        product(a, b)
        started = time.perf_counter()
        for _ in range(5):
            product(a, b)
        total += (time.perf_counter() - started) / 5 * times
    return total


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="the median is taken")
    parser.add_argument("--json", type=argparse.FileType("w"), default=None)
    args = parser.parse_args()
    torch.set_num_threads(max(1, torch.get_num_threads()))
    base = sl.load_base("micro")
    rows = number_rows(base, 512)
    figures: dict[str, float] = {}
    print(f"{'trainer':<28}{'tokens/s':>10}{'x peft':>8}{'peak MiB':>10}")

    def line(name: str, rate: float, against: float) -> None:
        print(f"{name:<28}{rate:>10.0f}{rate / against:>8.2f}{peak_mib():>10.0f}", flush=True)

    ranks = sorted(set(RANKS))
    share = {r: RANKS.count(r) / len(RANKS) for r in ranks}

    def one_at_a_time(run) -> float | None:
        """Tokens a second over the mixed ranks, one student after the other."""
        seconds = 0.0
        for r in ranks:
            values = [run(base, r, rows, args.steps) for _ in range(args.repeats)]
            if values[0] is None:
                return None
            seconds += share[r] * statistics.median(values)
        return step_tokens(rows, range(2, args.steps + 2), 0) / seconds

    peft = one_at_a_time(peft_loop)
    line("peft, plain loop", peft, peft)
    trl = one_at_a_time(trl_trainer)
    if trl is None:
        print("TRL is not installed (pip install 'sublora[trl]'); left out")
    else:
        line("TRL SFTTrainer", trl, peft)
    for count in (1, 4, 16, 64):
        seconds = statistics.median(ours(base, count, rows, args.steps) for _ in range(args.repeats))
        tokens = sum(step_tokens(rows, range(2, args.steps + 2), i) for i in range(count))
        line(f"ours, K = {count}", tokens / seconds, peft)
        if count == 16:
            alone = statistics.median(product_seconds(base, count, rows) for _ in range(args.repeats))
            figures |= {
                "ratio_vs_peft_k16": tokens / seconds / peft,
                "matmul_fraction_k16": alone / (seconds / args.steps),
            }
            if trl is not None:
                figures["ratio_vs_trl_k16"] = tokens / seconds / trl
    print(f"matrix products alone / whole step, K = 16: {figures['matmul_fraction_k16']:.2f}")
    if args.json:
        json.dump(figures, args.json, indent=1)


if __name__ == "__main__":
    main()
