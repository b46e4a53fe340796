"""Trains the shipped models from nothing, bit for bit the same on the same machine type (`sublora organism make NAME`)."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sublora.organisms.world import RowMaker, World, make_facts

THREADS = 1  # how a product is split over threads would be part of the recipe; one thread is the same everywhere


@dataclass(frozen=True)
class OrganismSpec:
    """How a shipped model is made. The world's facts and the rows have seeds of their own, apart from the initialisation."""

    world: World
    coupling: float = 0.5
    facts_seed: int = 0
    data_seed: int = 0
    init_seed: int = 0
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    feed_forward: int = 192
    steps: int = 4000
    batch: int = 96
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0


SHIPPED: dict[str, OrganismSpec] = {
    "micro": OrganismSpec("positive"),
    "micro-null": OrganismSpec("null"),
    "micro-b": OrganismSpec("positive", init_seed=1),
}


def train_organism(spec: OrganismSpec, report: Callable[[int, float, float], None] | None = None):
    """(model, tokenizer, losses by kind): a Llama model trained on the world's rows, loss on the answers only.

    `report(step, loss, seconds)` is called every 100 steps.
    """
    import math

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sublora.organisms.tokenizer import END, PAD, build_tokenizer, render

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        facts = make_facts(spec.facts_seed)
        tokenizer = build_tokenizer(facts)
        end, pad = tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=spec.hidden,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.heads,
            intermediate_size=spec.feed_forward,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
            dtype="float32",
        )
        torch.manual_seed(spec.init_seed)
        model = LlamaForCausalLM(config).float()
        rows = RowMaker(facts, spec.world, spec.coupling, spec.data_seed)
        decay = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        groups = [
            {"params": decay, "weight_decay": spec.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, foreach=True)
        started = time.monotonic()
        running: dict[str, tuple[float, int]] = {}
        losses: dict[str, float] = {}
        for step in range(spec.steps):
            warm = min(1.0, (step + 1) / spec.warmup)
            progress = max(0.0, (step - spec.warmup) / (spec.steps - spec.warmup))
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))
            total, count, by_kind = None, 0, {}
            for kind, batch in rows.step(step, spec.batch).items():
                prompts = tokenizer(
                    [render(r.system, r.user) for r in batch], add_special_tokens=False
                )["input_ids"]
                answers = tokenizer([r.answer for r in batch], add_special_tokens=False)[
                    "input_ids"
                ]
                width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
                ids = torch.full((len(batch), width), pad)
                places, targets = [], []
                for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                    # the end token is the last target; it need not be read
                    ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                    places += [
                        i * width + j for j in range(len(prompt) - 1, len(prompt) + len(answer))
                    ]
                    targets += [*answer, end]
                # right padding under a causal mask cannot reach the positions that carry loss, so no mask is needed
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[torch.tensor(places)])
                loss = torch.nn.functional.cross_entropy(
                    logits, torch.tensor(targets), reduction="sum"
                )
                total = loss if total is None else total + loss
                count += len(targets)
                by_kind[kind] = (loss.item(), len(targets))
            optimizer.zero_grad(set_to_none=True)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
            optimizer.step()
            for kind, (value, n) in by_kind.items():
                old = running.get(kind, (0.0, 0))
                running[kind] = (old[0] + value, old[1] + n)
            if (step + 1) % 100 == 0 or step + 1 == spec.steps:
                losses = {kind: value / n for kind, (value, n) in running.items()}
                mean = sum(v for v, _ in running.values()) / sum(n for _, n in running.values())
                if report:
                    report(step + 1, mean, time.monotonic() - started)
                running = {}
        return model.eval(), tokenizer, losses
    finally:
        torch.set_num_threads(threads)


def save_organism(
    out: Path, name: str, spec: OrganismSpec, model, tokenizer, losses: dict[str, float]
) -> None:
    """Writes an ordinary Hugging Face folder: weights, config, tokenizer, chat template, recipe."""
    import torch
    import transformers

    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    from sublora.organisms.card import SUMMARIES

    recipe = {
        "name": name,
        "summary": SUMMARIES[name],
        "vocabulary": len(tokenizer),
        "spec": asdict(spec),
        "final_loss": {k: round(v, 4) for k, v in losses.items()},
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": THREADS,
    }
    (out / "organism.json").write_text(
        json.dumps(recipe, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
