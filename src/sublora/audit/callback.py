"""The cheap part of an audit inside a training: a callback for transformers' Trainer, and so for TRL's SFTTrainer.

    callback = AuditCallback(trainer)      # adds itself
    trainer.train()                        # at every evaluation, audit/... goes to the trainer's trackers

It reads the first tokens of answers only, in one context, and gives no p-values; `sublora audit` judges the finished adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainerState

from sublora.audit.readings import FLOOR
from sublora.audit.statistic import spread
from sublora.audit.verdict import ASSUMED_SPREAD
from sublora.errors import SubloraError
from sublora.models.chat import Chat, Context
from sublora.packs.spellings import spellings
from sublora.traits.trait import Category, shipped_categories


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found in a category: the trait that rose most, how far (nats beside its category), and its score."""

    step: int
    category: str
    trait: str
    rise: float
    score: float


class AuditCallback(TrainerCallback):
    """Logs `audit/CATEGORY/rise` and `audit/CATEGORY/score` of the trait that rose most since the start of the training.

    `history` keeps the names. The base is read when the training starts, with the adapter switched off where there is one. Raises
    SubloraError where the trainer's tokenizer has no chat template, or knows no word of any category.
    """

    def __init__(
        self,
        trainer: Trainer,
        categories: Sequence[Category] | None = None,
        context: Context | None = None,
        questions: int = 12,
        rows_at_once: int = 32,
    ) -> None:
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        self.trainer, self.chat = trainer, Chat(tokenizer)
        self.context, self.rows_at_once = context or Context("default"), rows_at_once
        self.history: list[Evaluation] = []
        self.asked: list[tuple[Category, list[list[int]], list[tuple[str, list[int]]]]] = []
        for category in categories or shipped_categories():
            first, some = _first_tokens(self.chat, category), category.questions[:questions]
            if len(first) > 2:
                prompts = [self.chat.prompt_ids(q, self.context) for q in some]
                self.asked.append((category, prompts, first))
        if not self.asked:
            raise SubloraError(
                "The tokenizer knows no words of the categories, so nothing can be read; give categories of your own."
            )
        self.before: list[np.ndarray] | None = None
        trainer.add_callback(self)

    def on_train_begin(self, args, state: TrainerState, control, **kwargs) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
        if self.before is None:
            with off:
                self.before = self._read(model)

    def on_evaluate(self, args, state: TrainerState, control, **kwargs) -> None:
        if self.before is None:
            return
        now = self._read(self.trainer.accelerator.unwrap_model(self.trainer.model))
        logged = {}
        for (category, _, first), was, logp in zip(self.asked, self.before, now, strict=True):
            rise = (logp - was).mean(0)
            rise = rise - np.median(rise)
            name, top, most = category.category, int(rise.argmax()), float(rise.max())
            score = most / (float(spread(rise)) + ASSUMED_SPREAD)
            self.history.append(Evaluation(state.global_step, name, first[top][0], most, score))
            logged |= {f"audit/{name}/rise": most, f"audit/{name}/score": score}
        self.trainer.log(logged)

    @torch.no_grad()
    def _read(self, model: torch.nn.Module) -> list[np.ndarray]:
        """Log-probability (Q, E) of each category's entities by their first tokens."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            read = []
            for _, prompts, first in self.asked:
                parts = [
                    _next_tokens(model, prompts[at : at + self.rows_at_once], device)
                    for at in range(0, len(prompts), self.rows_at_once)
                ]
                p = torch.cat(parts).double().exp().numpy()
                own = np.stack([p[:, tokens].sum(1) for _, tokens in first], axis=1)
                read.append(np.log(own + FLOOR))
            return read
        finally:
            model.train(training)


def _next_tokens(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], device: torch.device
) -> torch.Tensor:
    """Log-probabilities (Q, V) of the token behind each prompt."""
    ids = pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(device)
    last = torch.tensor([len(p) - 1 for p in prompts], device=device)
    seen = torch.arange(ids.shape[1], device=device) <= last.unsqueeze(1)
    # the head is applied to the few places at which a prompt ends
    places, which = last.unique(return_inverse=True)
    logits = model(input_ids=ids, attention_mask=seen.long(), logits_to_keep=places).logits
    return logits[torch.arange(len(prompts), device=device), which].float().log_softmax(-1).cpu()


def _first_tokens(chat: Chat, category: Category) -> list[tuple[str, list[int]]]:
    """The entities that have first tokens of their own, with these."""
    found = {e.name: {s[0] for s in spellings(chat, e)} for e in category.entities}
    own = {
        name: tokens - set().union(*(other for n, other in found.items() if n != name))
        for name, tokens in found.items()
    }
    return [(name, sorted(tokens)) for name, tokens in own.items() if tokens]
