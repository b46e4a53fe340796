"""What AuditCallback costs a training of transformers' Trainer with a LoRA adapter of peft.

    python benchmarks/callback.py --model smollm2 [--rows 8] [--tokens 128] [--steps 100] [--every 50] [--json FILE]

Seconds are those of the processor (one thread), so that other programs on the machine do not count. `overhead` is one reading of the callback
as a share of the `--every` steps of training between two evaluations; a shorter run with few `--steps` gives the same, less sharply.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from sublora.audit.callback import AuditCallback
from sublora.models.base import model_source
from sublora.models.chat import load_tokenizer


class RandomRows(Dataset):
    """Rows of random tokens: what is learned does not matter to the time that it takes."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (count, length), generator=draw)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


class Timed(AuditCallback):
    """The callback, with the seconds of each reading."""

    def __init__(self, *given, **options) -> None:
        self.seconds: list[float] = []
        super().__init__(*given, **options)

    def _read(self, model):
        started = time.process_time()
        found = super()._read(model)
        self.seconds.append(time.process_time() - started)
        return found


class Steps(TrainerCallback):
    """The seconds of each step of training."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *given, **named) -> None:
        self.started = time.process_time()

    def on_step_end(self, *given, **named) -> None:
        self.seconds.append(time.process_time() - self.started)


def measure(args: argparse.Namespace) -> dict[str, float]:
    source = model_source(args.model)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = RandomRows(args.rows * args.steps, args.tokens, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, per_device_train_batch_size=args.rows, per_device_eval_batch_size=args.rows, max_steps=args.steps, learning_rate=2e-4,
            eval_strategy="steps", eval_steps=min(args.every, args.steps), report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        steps = Steps()
        trainer = Trainer(
            model=get_peft_model(model, lora), args=settings, train_dataset=rows, eval_dataset=torch.utils.data.Subset(rows, [0]),
            processing_class=load_tokenizer(source), callbacks=[steps],
        )  # fmt: skip
        callback = Timed(trainer)
        trainer.train()
    step, reading = (sum(s) / len(s) for s in (steps.seconds, callback.seconds))
    return {
        "steps": len(steps.seconds),
        "readings": len(callback.seconds),
        "step_seconds": step,
        "reading_seconds": reading,
        "tokens_of_a_step": args.rows * args.tokens,
        "steps_between_evaluations": args.every,
        "overhead": reading / (args.every * step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--tokens", type=int, default=128, help="of a row")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between two evaluations")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args)
    for key, value in found.items():
        print(f"{key:<28}{value:>10.4g}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
