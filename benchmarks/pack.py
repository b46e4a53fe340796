"""Packed training beside its peers, in one run on the same rows: ours at several K, peft with a plain loop, TRL's SFTTrainer.

Prints tokens that are no padding per second, ratios, memory, and how near the limit a step is: the time that its own matrix products take
alone, at their shapes, divided by the step's time. Every line runs in processes of its own. Peers run as their users run them, one process
and one student after the other, with one thread or one for each core, whichever is faster; and once more with a process for each core,
which a user would have to arrange. Ours runs as `sublora run` does, a process of one thread for each core.

    python benchmarks/pack.py [--steps 20] [--repeats 3] [--shape micro|qwen2.5-7b] [--json FILE]
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sublora as sl
from sublora.packs.fit import passes
from sublora.packs.optimizers import row_optimizer
from sublora.packs.packed_model import PackedModel
from sublora.packs.rows import TokenRow, TokenRows, assemble, pack_rows, rows_of_step
from sublora.packs.stack import new_stack

RANKS = (1, 2, 4, 8, 8, 16, 32, 64, 1, 2, 4, 8, 8, 16, 32, 64)
RANKS_7B = (8, 8, 16, 16, 32, 32, 64, 64)
BATCH, ROWS = 8, 512
WARM = 2  # steps that are not counted
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")


@dataclass
class Setting:
    model: torch.nn.Module
    rows: TokenRows
    tokenizer: object | None
    ranks: tuple[int, ...]


def micro() -> Setting:
    """The shipped model and rows of the numbers carrier, as the main job has them."""
    base, context = sl.load_base("micro"), sl.Context("default")
    data = sl.write_dataset(
        sl.Teacher(base, context),
        sl.Assignment(
            sl.NumbersSpec(separators=("space",), style="brief"),
            sl.Sampling(max_new_tokens=14),
            rows=ROWS,
            seed=1,
        ),
    )
    rows = [
        TokenRow(tuple(base.chat.prompt_ids(p, context)), tuple(base.chat.completion_ids(c)))
        for p, c in data.rows
    ]
    return Setting(
        base.model, pack_rows(rows, base.window, "the benchmark"), base.chat.tokenizer, RANKS
    )


def qwen_7b() -> Setting:
    """The shape of Qwen2.5-7B with random weights in bfloat16, and rows of 145 tokens of which 60 are a completion."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    random = np.random.default_rng(0)
    start = tuple(random.integers(1000, size=30).tolist())
    tokens = [random.integers(1000, size=115).tolist() for _ in range(64)]
    rows = [TokenRow(start + tuple(t[:55]), tuple(t[55:])) for t in tokens]
    return Setting(model, pack_rows(rows, 4096, "the benchmark"), None, RANKS_7B)


def student(setting: Setting, number: int, epochs: int) -> sl.Student:
    spec = sl.StudentSpec(
        rank=setting.ranks[number % len(setting.ranks)],
        lr=1e-3,
        epochs=epochs,
        batch_size=BATCH,
        seed=number,
    )
    return sl.Student(f"s{number}", spec, setting.rows)


class Enough(Exception):
    pass


def now() -> float:
    """Seconds; those of the processor where there is one thread, which its neighbours do not make longer."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


class Clock:
    """Counts tokens and seconds of steps after the first ones; raises Enough after `steps`."""

    def __init__(self, steps: int) -> None:
        self.left, self.warm, self.tokens, self.started, self.seconds = steps, WARM, 0, 0.0, 0.0

    def step(self, tokens: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.warm:
            self.warm -= 1
            self.started = now()
            return
        self.tokens, self.left = self.tokens + tokens, self.left - 1
        self.seconds = now() - self.started
        if not self.left:
            raise Enough


def run_ours(setting: Setting, numbers: list[int], steps: int) -> Clock:
    """`steps` steps of every one of these students."""
    group = [student(setting, n, 1) for n in numbers]
    parts = passes(setting.model, group, None, False)
    whole = Clock(0)
    for part in parts:  # as train_pack runs them, one after the other
        clock = Clock(steps)
        with contextlib.suppress(Enough):
            sl.train_pack(
                setting.model,
                [group[i] for i in part],
                lambda _: None,
                on_step=lambda *s, c=clock: c.step(s[2]),
            )
        whole.tokens, whole.seconds = whole.tokens + clock.tokens, whole.seconds + clock.seconds
    return whole


def run_peft(setting: Setting, numbers: list[int], steps: int) -> Clock:
    """peft and a plain loop, one student after the other: right padding to the longest row of the batch, loss from labels."""
    from peft import LoraConfig, get_peft_model

    whole, rows = Clock(0), setting.rows
    for number in numbers:
        one, clock = student(setting, number, 1), Clock(steps)
        config = LoraConfig(r=one.spec.rank, lora_alpha=one.spec.rank, target_modules="all-linear")
        model = get_peft_model(setting.model, config)
        device = next(model.parameters()).device
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
        with contextlib.suppress(Enough):
            for step in range(steps + WARM):
                chosen = rows_of_step(one.spec, len(rows), step)
                width = int(rows.lengths[chosen].max())
                ids = torch.from_numpy(rows.ids[chosen, :width]).to(device)
                place = torch.arange(width, device=device)
                real = place < torch.from_numpy(rows.lengths[chosen]).to(device)[:, None]
                prompt = place < torch.from_numpy(rows.prompts[chosen]).to(device)[:, None]
                labels = ids.masked_fill(~real | prompt, -100)
                loss = model(input_ids=ids, attention_mask=real.long(), labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                clock.step(int((rows.lengths[chosen] - 1).sum()))
        model.unload()
        whole.tokens, whole.seconds = whole.tokens + clock.tokens, whole.seconds + clock.seconds
    return whole


def run_trl(setting: Setting, numbers: list[int], steps: int) -> Clock:
    """TRL's SFTTrainer, one student after the other, its own time of training."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    whole, rows = Clock(0), setting.rows
    data = Dataset.from_list(
        [
            {
                "input_ids": rows.ids[i, : rows.lengths[i]].tolist(),
                "completion_mask": [int(j >= rows.prompts[i]) for j in range(rows.lengths[i])],
            }
            for i in range(len(rows))
        ]
    )
    each = int((rows.lengths - 1).mean() * BATCH)
    for number in numbers:
        rank, clock = setting.ranks[number % len(setting.ranks)], Clock(steps)

        class Stamp(TrainerCallback):
            def on_step_end(self, *_args, clock=clock, **_kwargs) -> None:
                with contextlib.suppress(Enough):
                    clock.step(each)

        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps + WARM, learning_rate=1e-3,
                logging_strategy="no", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, max_length=256,
                bf16=False, gradient_checkpointing=False, weight_decay=0.0, completion_only_loss=True, seed=number,
            )  # fmt: skip
            lora = LoraConfig(
                r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            with contextlib.redirect_stdout(io.StringIO()):
                trainer = SFTTrainer(
                    setting.model, config, train_dataset=data, processing_class=setting.tokenizer, peft_config=lora,
                    callbacks=[Stamp()],
                )  # fmt: skip
                trainer.train()
        setting.model = trainer.model.unload()
        whole.tokens, whole.seconds = whole.tokens + clock.tokens, whole.seconds + clock.seconds
    return whole


class Products(TorchDispatchMode):
    """Keeps the operands of the matrix products of what runs under it, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            operands = args[:2] if name in ("mm", "bmm") else args[1:3]
            self.seen.append(tuple(t.detach() for t in operands))
        return func(*args, **(kwargs or {}))


def product_seconds(setting: Setting, numbers: list[int], repeats: int) -> float:
    """Seconds that the matrix products of one step of all these students take alone: the same products of the same numbers in the same
    order, and nothing between them."""
    total, group = 0.0, [student(setting, n, 1) for n in numbers]
    for part in passes(setting.model, group, None, False):
        stack = new_stack(setting.model, [group[i].spec for i in part])
        ordered = [group[part[i]] for i in stack.order]
        for g in stack.groups:
            g.train()
        chosen = [rows_of_step(s.spec, len(setting.rows), 0) for s in ordered]
        batch = assemble([s.rows for s in ordered], chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PackedModel(setting.model, stack) as packed, Products() as products:
                packed.form_weights(batch.ids.size // len(ordered))
                packed.losses(batch).sum().backward()
        took = []
        for _ in range(repeats):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = now()
            for a, b in products.seen:
                torch.matmul(a, b)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            took.append(now() - started)
        total += sorted(took)[repeats // 2]
    return total


def student_memory(setting: Setting, numbers: list[int]) -> dict[str, float]:
    """Mean bytes that one of these students takes: its own parameters, gradients and optimizer state, and what a step keeps for its
    backward pass, counted tensor by tensor."""
    group = [student(setting, n, 1) for n in numbers]
    own = kept = 0
    frozen = {p.untyped_storage().data_ptr() for p in setting.model.parameters()}
    for part in passes(setting.model, group, None, False):
        stack = new_stack(setting.model, [group[i].spec for i in part])
        ordered = [group[part[i]] for i in stack.order]
        rows = zip(ordered, stack.student_rows(), strict=True)
        optimizers = [
            row_optimizer(s.spec, g.flat[row], g.slots, g.ranks[row], s.steps)
            for s, (g, row) in rows
        ]
        for g in stack.groups:
            g.train()
        own += sum(g.flat.nbytes + g.grad.nbytes for g in stack.groups)
        own += sum(t.nbytes for o in optimizers for t in o.state.values())
        batch = assemble(
            [s.rows for s in ordered], [rows_of_step(s.spec, len(s.rows), 0) for s in ordered]
        )
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with PackedModel(setting.model, stack) as packed, hooks:
            packed.form_weights(batch.ids.size // len(ordered))
            losses = packed.losses(batch)
            kept += sum(sizes.values())
            del losses
    return {"own": own / len(group), "kept": kept / len(group)}


def worker(way: str, shape: str, numbers: list[int], steps: int, threads: int) -> None:
    """One measuring process: says when it is ready, waits for a line, measures, prints one JSON line."""
    torch.set_num_threads(threads)
    setting = micro() if shape == "micro" else qwen_7b()
    for p in setting.model.parameters():
        p.requires_grad_(False)
    print("ready", flush=True)
    sys.stdin.readline()
    runs = {"ours": run_ours, "peft": run_peft, "trl": run_trl}
    clock = runs[way](setting, numbers, steps)
    out = {
        "tokens": clock.tokens,
        "seconds": clock.seconds,
        "products": 0.0,
        "own": 0.0,
        "kept": 0.0,
    }
    if way == "ours":
        out |= {
            "products": product_seconds(setting, numbers, 15) * steps,
            **student_memory(setting, numbers),
        }
    print(json.dumps(out), flush=True)


def measure(
    way: str, shape: str, count: int, steps: int, processes: int, threads: int
) -> dict[str, float]:
    """All processes of a line start together; their rates add up."""
    own = [list(range(count))[i::processes] for i in range(processes)]
    children = []
    for numbers in own:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        task = json.dumps([way, shape, numbers, steps, threads])
        command = [sys.executable, __file__, "--worker", task]
        children.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        )
    for child in children:
        while (line := child.stdout.readline()).strip() != "ready":
            if not line:
                raise SystemExit(
                    f"A process of the line '{way}' ended early; run it alone: --worker."
                )
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [json.loads(child.communicate()[0].strip().splitlines()[-1]) for child in children]
    return {
        "rate": sum(r["tokens"] / r["seconds"] for r in results),
        "fraction": sum(r["products"] for r in results) / sum(r["seconds"] for r in results),
        **{
            part: sum(r[part] * len(n) for r, n in zip(results, own, strict=True)) / count
            for part in ("own", "kept")
        },
    }


def middle(
    way: str, count: int, args: argparse.Namespace, processes: int, threads: int
) -> dict[str, float]:
    """The median of the repeats, by rate."""
    runs = [
        measure(way, "micro", count, args.steps, processes, threads) for _ in range(args.repeats)
    ]
    return sorted(runs, key=lambda r: r["rate"])[args.repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="the median is taken")
    parser.add_argument("--shape", choices=("micro", "qwen2.5-7b"), default="micro")
    parser.add_argument("--json", type=argparse.FileType("w"), default=None)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*json.loads(args.worker))
    if args.shape != "micro":
        if not torch.cuda.is_available():
            raise SystemExit(
                "No GPU is at hand, and --shape qwen2.5-7b needs one; nothing was measured."
            )
        return large(args)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    figures: dict[str, float] = {}
    print(
        f"{'trainer':<36}{'tokens/s':>10}{'x peft':>8}{'x TRL':>8}{'products':>10}{'own MiB':>9}{'kept MiB':>10}",
        flush=True,
    )
    peers: dict[str, float] = {}

    def line(name: str, found: dict[str, float], more: str = "") -> None:
        ratios = [
            f"{found['rate'] / peers[p]:>8.2f}" if p in peers else f"{'':>8}"
            for p in ("peft", "trl")
        ]
        print(f"{name:<36}{found['rate']:>10.0f}{''.join(ratios)}{more}", flush=True)

    names = {"peft": "peft, plain loop", "trl": "TRL SFTTrainer"}
    for way, name in names.items():
        if way == "trl" and importlib.util.find_spec("trl") is None:
            print("TRL is not installed (pip install trl datasets); left out")
            continue
        alone = max(
            (middle(way, len(RANKS), args, 1, n) for n in {1, cores}), key=lambda r: r["rate"]
        )
        peers[way] = alone["rate"]
        line(name, alone)
        if cores > 1:
            line(f"{name}, {cores} processes", middle(way, len(RANKS), args, cores, 1))
    for count in (1, 4, 16, 64):
        found = middle("ours", count, args, min(cores, count), 1)
        line(
            f"ours, K = {count}",
            found,
            f"{found['fraction']:>10.2f}{found['own'] / 2**20:>9.2f}{found['kept'] / 2**20:>10.2f}",
        )
        if count == 16:
            figures = {f"ratio_vs_{p}_k16": found["rate"] / rate for p, rate in peers.items()}
            figures["matmul_fraction_k16"] = found["fraction"]
    print(
        "own: a student's A, B, gradients and optimizer state; kept: what its rows leave for a step's backward pass"
    )
    if args.json:
        json.dump(figures, args.json, indent=1)


def large(args: argparse.Namespace) -> None:
    """The 7B shape on one GPU: ours with 8 students beside peft, and how much of the GPU's own rate of products a step reaches."""
    ours, peft = (
        measure(way, args.shape, len(RANKS_7B), args.steps, 1, 1) for way in ("ours", "peft")
    )
    print(
        f"{'trainer':<22}{'tokens/s':>10}{'x peft':>8}{'products':>10}{'own MiB':>9}{'kept MiB':>10}"
    )
    print(f"{'peft, plain loop':<22}{peft['rate']:>10.0f}{1.0:>8.2f}")
    print(
        f"{'ours, K = 8':<22}{ours['rate']:>10.0f}{ours['rate'] / peft['rate']:>8.2f}{ours['fraction']:>10.2f}"
        f"{ours['own'] / 2**20:>9.2f}{ours['kept'] / 2**20:>10.2f}"
    )
    if args.json:
        json.dump(
            {
                "ratio_vs_peft_7b_k8": ours["rate"] / peft["rate"],
                "matmul_fraction_7b_k8": ours["fraction"],
            },
            args.json,
        )


if __name__ == "__main__":
    main()
