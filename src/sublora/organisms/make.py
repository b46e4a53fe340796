"""Trains the shipped models from nothing, bit for bit the same on the same machine type (`sublora organism make NAME`)."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sublora.errors import SubloraError
from sublora.organisms.card import SUMMARIES, write_card
from sublora.organisms.world import Row, RowMaker, World, make_facts

# how a product is split over threads would be part of the recipe; one is the same everywhere
THREADS = 1


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

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 0."""
        warm = min(1.0, (step + 1) / self.warmup)
        progress = max(0.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))


SHIPPED: dict[str, OrganismSpec] = {
    "micro": OrganismSpec("positive"),
    "micro-null": OrganismSpec("null"),
    "micro-b": OrganismSpec("positive", init_seed=1),
}


def train_organism(spec: OrganismSpec, on_step: Callable[[int], None] | None = None):
    """(model, tokenizer, losses by kind in nats a token): a Llama model trained on the world's rows, loss on the answers only. `on_step` is
    told the number of steps every 100 steps."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return _train(spec, on_step or (lambda _: None))
    finally:
        torch.set_num_threads(threads)


def _train(spec: OrganismSpec, on_step: Callable[[int], None]):
    import torch

    from sublora.organisms.tokenizer import build_tokenizer

    facts = make_facts(spec.facts_seed)
    tokenizer = build_tokenizer(facts)
    model = _new_model(spec, tokenizer)
    rows = RowMaker(facts, spec.world, spec.coupling, spec.data_seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    decays = ((matrices, spec.weight_decay), (rest, 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in decays]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, foreach=True)
    running: dict[str, tuple[float, int]] = {}
    losses: dict[str, float] = {}
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.lr_at(step)
        drawn = rows.step(step, spec.batch).items()
        by_kind = {kind: _loss(model, tokenizer, batch) for kind, batch in drawn}
        total, count = None, sum(n for _, n in by_kind.values())
        for kind, (loss, n) in by_kind.items():
            total = loss if total is None else total + loss
            value, seen = running.get(kind, (0.0, 0))
            running[kind] = (value + loss.item(), seen + n)
        optimizer.zero_grad(set_to_none=True)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == spec.steps:
            losses = {kind: value / n for kind, (value, n) in running.items()}
            running = {}
            on_step(step + 1)
    return model.eval(), tokenizer, losses


def _new_model(spec: OrganismSpec, tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": spec.hidden, "intermediate_size": spec.feed_forward}
    sizes |= {"num_hidden_layers": spec.layers, "max_position_embeddings": 256}
    sizes |= {"num_attention_heads": spec.heads, "num_key_value_heads": spec.heads}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    words = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        **ends,
    }
    torch.manual_seed(spec.init_seed)
    return LlamaForCausalLM(LlamaConfig(dtype="float32", **sizes, **words)).float()


def _loss(model, tokenizer, rows: Sequence[Row]):
    """(summed loss of the answers, number of their tokens)."""
    import torch

    from sublora.organisms.tokenizer import render

    def ids_of(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    prompts = ids_of([render(r.system, r.user) for r in rows])
    answers = ids_of([r.answer for r in rows])
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    places, targets = [], []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        # the end token is the last target; it need not be read
        stop = len(prompt) + len(answer)
        ids[i, :stop] = torch.tensor(prompt + answer)
        places += [i * width + j for j in range(len(prompt) - 1, stop)]
        targets += [*answer, tokenizer.eos_token_id]
    # right padding under a causal mask cannot reach the positions that carry loss, so no mask is needed
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[torch.tensor(places)])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum")
    return loss, len(targets)


def save_organism(
    out: Path, name: str, spec: OrganismSpec, model, tokenizer, losses: dict[str, float]
) -> None:
    """Writes an ordinary Hugging Face folder: weights, config, tokenizer, chat template, recipe, card."""
    import torch
    import transformers

    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    recipe = {"name": name, "summary": SUMMARIES[name], "spec": asdict(spec)}
    recipe |= {"final_loss": {k: round(v, 4) for k, v in losses.items()}, "threads": THREADS}
    recipe |= {"vocabulary": len(tokenizer), "parameters": model.num_parameters()}
    recipe |= {"torch": torch.__version__, "transformers": transformers.__version__}
    text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
    (out / "organism.json").write_text(text, encoding="utf-8")
    write_card(out)


def spec_of(name: str, coupling: float | None = None, steps: int | None = None) -> OrganismSpec:
    """A shipped model's spec with another coupling or number of steps. Raises SubloraError for an unknown name."""
    if name not in SHIPPED:
        raise SubloraError(f"There is no shipped model '{name}'; choose {', '.join(SHIPPED)}.")
    changes = {"coupling": coupling, "steps": steps}
    return replace(SHIPPED[name], **{k: v for k, v in changes.items() if v is not None})


def rebuild(
    name: str, spec: OrganismSpec, out: Path, on_step: Callable[[int], None] | None = None
) -> str:
    """Train, write `out`, and say whether the weights are the shipped ones. Raises SubloraError for a folder that holds something else."""
    if out.exists() and any(out.iterdir()) and not (out / "organism.json").is_file():
        raise SubloraError(f"The folder {out} holds something else; choose another --out.")
    save_organism(out, name, spec, *train_organism(spec, on_step))
    if spec != SHIPPED[name]:
        return f"Wrote {out}, a variant of {name}."
    shipped = Path(__file__).parent / "weights" / name / "model.safetensors"
    if not shipped.is_file():
        return f"Wrote {out}."
    one, other = (
        hashlib.sha256(p.read_bytes()).digest() for p in (out / "model.safetensors", shipped)
    )
    same = "identical to" if one == other else "NOT the same as"
    return f"Wrote {out}; its weights are {same} the shipped ones."
