"""One frozen base, K students: a batch of K x B rows runs each student's own weights.

The model's own forward pass runs with its layers patched; a training step of the Llama family takes a faster way to the same numbers
(`packs.fast`).
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from sublora.errors import SubloraError
from sublora.packs import hooks
from sublora.packs.fast.flat import flat_model
from sublora.packs.full import full_forwards
from sublora.packs.interventions import Interventions, StreamSteering, TokenGate
from sublora.packs.kernels import Soft, completion_loss, take
from sublora.packs.rows import StepBatch
from sublora.packs.stack import Stack
from sublora.packs.weights import AdapterWeights

# Numbers in a chunk of logits, which are never held all at once: on a CPU a chunk should stay in its cache.
LOGITS_AT_ONCE = {"cpu": 2**19, "cuda": 2**27}
SMALL_MODEL = 20_000_000  # parameters up to which one thread computes a model best on a CPU
LOGIT_ROWS = 128  # of a chunk at least: a large frozen head is read anew for each


class PackedModel:
    """Runs the students of a stack over a Hugging Face causal LM; a context manager, the model is as before on exit.

    `stack=None` runs the base itself as a pack of one. Inputs are (K * B, T), row b of student k at k * B + b. With `recompute`
    (gradient checkpointing) the backward pass runs each layer's forward again instead of keeping what it made.
    A `gate` multiplies each token's part of the adapters, a `steering` acts on the residual stream behind layers; before each call of
    `hidden`, `interventions` are told which tokens it holds.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: Stack | None,
        gate: TokenGate | None = None,
        *,
        steering: StreamSteering | None = None,
        recompute: bool = False,
    ) -> None:
        self.model, self.stack, self.gate, self.recompute = model, stack, gate, recompute
        self.steering, self.interventions = steering, Interventions(gate, steering)
        self.size = stack.size if stack else 1
        self.decoder, self.head = model.base_model, model.get_output_embeddings()
        # transformers 5.24 renamed it
        named = inspect.signature(self.decoder.forward).parameters
        self.cache_argument = "cache" if "cache" in named else "past_key_values"
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.full = stack.groups[0] if stack is not None and stack.kind == "full" else None
        self.adapters = None
        if stack is not None and stack.kind == "lora":
            modules = dict(model.named_modules())
            self.adapters = AdapterWeights(stack, modules, low_only=gate is not None)
        self.flat = flat_model(model, stack, self.adapters, recompute) if stack else None
        self._opened = ExitStack()

    def __enter__(self) -> "PackedModel":
        with ExitStack() as opened:
            opened.enter_context(best_threads(self.model))
            if self.steering is not None:
                layers, steer = self.decoder.layers, self.steering.steer
                acts = [(layers[n], partial(steer, n)) for n in self.steering.layers]
                opened.enter_context(hooks.change(acts))
            opened.enter_context(hooks.forwards(self._forwards()))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        if self.adapters is not None:
            self.adapters.clear()

    def _forwards(self) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
        if self.full is not None:
            yield from full_forwards(self.model, self.full)
        elif self.stack is not None:
            for name, module in self.stack.linears.items():
                yield module, partial(self._adapted, name)

    def _adapted(self, name: str, x: Tensor) -> Tensor:
        """A layer with adapters, (K * B, T, o) of x (K * B, T, i)."""
        rows, factor = x.reshape(self.size, -1, x.shape[-1]), None
        if self.gate is not None:
            factor = self.gate.factors(name, rows).reshape(self.size, -1, 1)
        return self.adapters.layer(name, rows, factor).view(*x.shape[:-1], -1)

    def form_weights(self, tokens_per_student: int) -> None:
        """Make the step's weights from the students' parameters; call before the first forward of a step."""
        if self.adapters is not None:
            self.adapters.form(tokens_per_student)

    @property
    def head_weight(self) -> Tensor:
        """(V, d), or (K, V, d) where every student has its own."""
        return self._own(self.head.weight)

    def _own(self, parameter: Tensor) -> Tensor:
        """One of the model's parameters, or those of full fine-tunes, stacked."""
        if self.full is None:
            return parameter
        name = next(n for n, p in self.model.named_parameters() if p is parameter)
        return self.full.views[name]

    def losses(self, batch: StepBatch) -> Tensor:
        """Mean loss per completion token of each student, (K,), in nats: cross-entropy, or the divergence from its soft labels."""
        if self.interventions:
            raise ValueError("losses are those of the plain students")
        picked = self._padded_hidden(batch) if self.flat is None else self.flat.hidden(batch)
        device = self.head.weight.device
        weights = torch.from_numpy(batch.weights).to(device)
        kinds = [(kind.students.tolist(), kind) for kind in batch.soft]
        taught = {student for students, _ in kinds for student in students}
        if plain := [k for k in range(self.size) if k not in taught]:
            kinds.append((plain, None))
        losses = []
        for students, kind in kinds:
            if kind is None:
                goal = torch.from_numpy(batch.targets).to(device)[students]
            else:
                values = (torch.from_numpy(array).to(device) for array in (kind.ids, kind.logp))
                goal = Soft(*values, kind.reverse)
            every = len(students) == self.size
            losses.append(self._loss(picked, weights, goal, None if every else students))
        order = np.argsort([student for students, _ in kinds for student in students])
        return losses[0] if len(losses) == 1 else torch.cat(losses)[order.tolist()]

    def _loss(
        self, picked: Tensor, weights: Tensor, goal: Tensor | Soft, chosen: list[int] | None
    ) -> Tensor:
        """Of all students, or of those that have this kind of goal."""
        head, bias = self.head_weight, getattr(self.head, "bias", None)
        if bias is not None and self.full is not None:
            bias = self._own(bias).unsqueeze(1)
        if chosen is not None:
            picked, weights = picked[chosen], weights[chosen]
            if self.full is not None:
                head, bias = head[chosen], bias if bias is None else bias[chosen]
        at_once = LOGITS_AT_ONCE.get(picked.device.type, LOGITS_AT_ONCE["cuda"])
        if self.full is None:
            at_once = max(at_once, LOGIT_ROWS * len(head))
        return completion_loss(picked, head, bias, goal, weights, self.softcap, at_once)

    def _padded_hidden(self, batch: StepBatch) -> Tensor:
        """Hidden states (K, m, d) at the places that carry loss, by the model's own forward pass over padded rows."""
        ids, prefix, where = (
            torch.from_numpy(array).to(self.head.weight.device)
            for array in (batch.ids, batch.prefix, batch.where)
        )
        rows, p, cache = batch.sizes.shape[1], batch.prefix.shape[1], None
        if self.recompute and p:  # a cache is filled on the way and cannot be filled again
            ids = torch.cat((prefix.repeat_interleave(rows, 0), ids), 1)
            where = where + p * (where // batch.ids.shape[1] + 1)
            p = 0
        if p:
            # the shared prefix is read once for each student; its keys and values carry gradients to all of the student's rows
            cache = self.new_cache()
            self.hidden(prefix, cache)
            cache.batch_repeat_interleave(rows)
        with _recomputing(self.decoder) if self.recompute else nullcontext():
            hidden = self.hidden(ids, cache, position=p)
        return take(hidden.view(self.size, -1, hidden.shape[-1]), where)

    def hidden(
        self,
        ids: Tensor,
        cache=None,
        position: int = 0,
        places: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (K * B, T, d) of ids (K * B, T) that stand at `position`, after what the cache holds, or at `places` (K * B,
        T). `mask` says what they see: the columns (K * B, all columns) that are no padding, or, added to the scores, (K * B, 1, T, all)."""
        if places is None:
            places = torch.arange(position, position + ids.shape[1], device=ids.device)
            places = places.unsqueeze(0).expand(ids.shape[0], -1)
        kept = {"use_cache": cache is not None, self.cache_argument: cache}
        out = self.decoder(input_ids=ids, position_ids=places, attention_mask=mask, **kept)
        return out.last_hidden_state

    def logits(self, rows: Tensor) -> Tensor:
        """Logits (K * M, V) of hidden states (K * M, d), M rows a student, in at least float32."""
        out = self.head(rows)
        out = out if out.dtype == torch.float64 else out.float()
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def new_cache(self):
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def row_cache(self):
        """As `new_cache`, for rows of several lengths. Raises SubloraError for a model that keeps something else than keys and values."""
        from sublora.packs.cache import RowCache

        kept = {type(layer).__name__ for layer in self.new_cache().layers}
        if other := kept - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
            raise SubloraError(f"it keeps more than keys and values ({min(other)})")
        return RowCache()

    @property
    def window(self) -> float:
        """How far back the layers look that look back least, in tokens."""
        layers = self.new_cache().layers
        return min(
            (getattr(x, "sliding_window", None) or math.inf for x in layers), default=math.inf
        )


def _recomputing(decoder: nn.Module):
    """Every decoder layer keeps its input only, and runs again in the backward pass."""
    again = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    return hooks.forwards([(layer, partial(again, layer.forward)) for layer in decoder.layers])


@contextmanager
def best_threads(model: nn.Module) -> Iterator[None]:
    """One thread for a small model on a CPU: its products are too short to be split, a second thread beside another busy process makes
    each of them wait, and so their bytes are the same for any number of threads. As before on exit."""
    threads, parameters = torch.get_num_threads(), list(model.parameters())
    small = sum(p.numel() for p in parameters) <= SMALL_MODEL
    if small and parameters[0].device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def lending(model: nn.Module) -> Iterator[None]:
    """A base that only lends its weights: no dropout and no gradients of its own; as before on exit."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
