"""What the packed trainer must equal: plain training loops over one student, with peft and torch.optim, written without its code."""

import copy
import functools
import math
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sublora.packs.decode import sample_rows
from sublora.packs.optimizers import rotation
from sublora.packs.rows import TokenRow, pack_rows, rows_of_step
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack
from sublora.packs.student import Student
from sublora.packs.trainer import train_pack
from tiny_models import shared_model

KINDS = ("qwen2", "llama", "gemma", "qwen3", "mistral", "olmo2")
VOCABULARY = 200  # random rows use so many tokens, which all tiny models have
TEMPLATES = {"gemma": "gemma", "llama": "llama31"}


@functools.cache
def _loaded(kind: str, dtype: torch.dtype):
    if kind == "wide":  # every layer is at least 64 wide, so that rank 64 fits
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.1,
            max_position_embeddings=256,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return LlamaForCausalLM(config).to(dtype).eval()
    folder = shared_model(kind, "digits", TEMPLATES.get(kind, "qwen"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def base_model(kind: str = "qwen2", dtype: torch.dtype = torch.float64, exact_norms: bool = True):
    """A model of its own for the caller. Transformers computes norms in float32 even in a float64 model, which rounds a difference
    of 1e-16 up to 1e-8 now and then; `exact_norms` takes them in the model's own dtype, so that 1e-9 can be asked for."""
    model = copy.deepcopy(_loaded(kind, dtype))
    if dtype == torch.float64 and exact_norms:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.__class__ = _exact_norm(type(module))
    return model


@functools.cache
def _exact_norm(norm: type) -> type:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
        plus = 1.0 if norm.__name__.startswith("Gemma") else 0.0
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (self.weight + plus)

    return type(norm.__name__, (norm,), {"forward": forward})


def random_rows(count: int, seed: int, prefix: int = 4, longest: int = 12) -> list[TokenRow]:
    """Rows of unequal length whose prompts begin alike."""
    rng = np.random.default_rng(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(VOCABULARY, size=n).tolist())

    start = tokens(prefix)
    return [
        TokenRow(start + tokens(rng.integers(1, longest)), tokens(rng.integers(1, longest)))
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Case:
    """A student together with its rows as they were before packing. `loss(logits, indices of the rows)` where it is no cross-entropy."""

    student: Student
    rows: list[TokenRow]
    loss: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None


def case(name: str, *, count: int = 12, data: int = 0, prefix: int = 4, **values) -> Case:
    """`values` are fields of StudentSpec; `data` seeds the rows."""
    values = {"rank": 4, "lr": 5e-3, "batch_size": 4, "epochs": 2, "warmup_steps": 2} | values
    if values.get("method") == "full":
        values["rank"] = None
    rows = random_rows(count, data, prefix)
    return Case(Student(name, StudentSpec(**values), pack_rows(rows, None, name)), rows)


def train(model, cases: Sequence[Case], **options) -> dict[str, dict]:
    """Train one pack; {name: {"weights": {tensor name: tensor}, "losses", "diverged_at", ...}}."""
    out = {}

    def keep(trained) -> None:
        group, row = trained.group, trained.row
        assert torch.equal(group.pad(row, trained.weights), group.flat[row]), (
            "the padding of a rank stays exactly zero"
        )
        out[cases[trained.index].student.name] = {
            "weights": {name: tensor.clone() for name, tensor in group.tensors(row).items()},
            "losses": list(trained.losses),
            "norms": list(trained.norms),
            "diverged_at": trained.diverged_at,
            "optimizer": trained.optimizer,
        }

    train_pack(model, [c.student for c in cases], keep, **options)
    return out


def rate(spec: StudentSpec, step: int, steps: int) -> float:
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / (spec.warmup_steps + 1)
    left = (steps - step) / (steps - spec.warmup_steps)
    return (
        spec.lr
        * {"linear": left, "cosine": (1 + math.cos(math.pi * (1 - left))) / 2, "constant": 1.0}[
            spec.schedule
        ]
    )


class SignDescent(torch.optim.Optimizer):
    def __init__(self, parameters, weight_decay: float, momentum: float) -> None:
        values = {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(parameters, values)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                grad, momentum = p.grad, group["momentum"]
                if momentum:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    grad = mean.mul_(momentum).add_(grad, alpha=1 - momentum)
                p.copy_(
                    p * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * torch.sign(grad)
                )


class ExactMuon(torch.optim.Muon):
    """Torch's Muon without its rounding to bfloat16, which would hide what a pack adds."""

    def step(self) -> None:
        with unittest.mock.patch.object(torch.Tensor, "bfloat16", lambda self: self):
            super().step()


class TurnedAdamW(torch.optim.AdamW):
    """AdamW on copies of the parameters in a rotated basis; the parameters are turned back from them after every step."""

    def __init__(self, named: dict[str, torch.nn.Parameter], **values) -> None:
        self.plain, self.turns = list(named.values()), []
        for name, p in named.items():
            layer, side = name.rsplit(".", 2)[-2:]
            reads = (
                layer in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") and side == "lora_A"
            )
            writes = layer in ("o_proj", "down_proj") and side == "lora_B"
            left, right = (torch.eye(n, dtype=p.dtype) for n in p.shape)
            if reads:
                right = rotation(p.shape[1], "cpu", p.dtype).T
            if writes:
                left = rotation(p.shape[0], "cpu", p.dtype)
            self.turns.append((left, right))
        turned = [
            torch.nn.Parameter(a @ p.detach() @ b)
            for p, (a, b) in zip(self.plain, self.turns, strict=True)
        ]
        super().__init__(turned, **values)

    def step(self) -> None:
        own = self.param_groups[0]["params"]
        for p, turned, (a, b) in zip(self.plain, own, self.turns, strict=True):
            turned.grad = a @ p.grad @ b
        super().step()
        with torch.no_grad():
            for p, turned, (a, b) in zip(self.plain, own, self.turns, strict=True):
                p.copy_(a.T @ turned @ b.T)

    def zero_grad(self) -> None:
        for p in self.plain:
            p.grad = None


def torch_optimizer(
    spec: StudentSpec, named: dict[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    parameters, decay = list(named.values()), {"weight_decay": spec.weight_decay}
    adam = {"betas": spec.betas, "eps": spec.eps, **decay}
    makers = {
        "adamw": lambda: torch.optim.AdamW(parameters, **adam),
        "sgd": lambda: torch.optim.SGD(parameters, momentum=spec.momentum, **decay),
        "rmsprop": lambda: torch.optim.RMSprop(
            parameters, eps=spec.eps, momentum=spec.momentum, **decay
        ),
        "signsgd": lambda: SignDescent(parameters, momentum=spec.momentum, **decay),
        "adamw-b": lambda: torch.optim.AdamW(
            [p for name, p in named.items() if "lora_A" not in name], **adam
        ),
        "muon": lambda: ExactMuon(parameters, momentum=spec.momentum, **decay),
        "rotated-adamw": lambda: TurnedAdamW(named, **adam),
    }
    return makers[spec.optimizer]()


def plain_loop(
    model, named: dict[str, torch.nn.Parameter], one: Case
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The student by torch.optim; where it scouts, first an epoch of AdamW, whose second moments then scale plain gradients."""
    spec = one.student.spec
    if spec.optimizer != "frozen-adam-scale":
        return _loop(model, named, one, spec, torch_optimizer(spec, named))
    start = {n: p.detach().clone() for n, p in named.items()}
    scout = spec.model_copy(
        update={"optimizer": "adamw", "lr": spec.scout_lr, "epochs": 1, "scout_lr": None}
    )
    adam = torch_optimizer(scout, named)
    _, first = _loop(model, named, one, scout, adam)
    scales = {n: 1 / (adam.state[p]["exp_avg_sq"] + 1e-8).sqrt() for n, p in named.items()}
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(start[name])
    main = spec.model_copy(update={"optimizer": "sgd", "scout_lr": None, "weight_decay": 0.0})
    weights, losses = _loop(model, named, one, main, torch_optimizer(main, named), scales)
    return weights, first + losses


def _loop(
    model,
    named: dict[str, torch.nn.Parameter],
    one: Case,
    spec: StudentSpec,
    optimizer,
    scales=None,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The textbook loop over right-padded batches: forward, cross-entropy on the completions, clip, step."""
    parameters = list(named.values())
    steps = spec.epochs * math.ceil(len(one.rows) / spec.batch_size)
    losses = []
    for step in range(steps):
        chosen = rows_of_step(spec, len(one.rows), step)
        batch = [one.rows[i] for i in chosen]
        width = max(len(r.prompt) + len(r.completion) for r in batch)
        ids, labels = (
            torch.zeros(len(batch), width, dtype=torch.long),
            torch.full((len(batch), width), -100),
        )
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for i, row in enumerate(batch):
            whole = row.prompt + row.completion
            ids[i, : len(whole)], mask[i, : len(whole)] = torch.tensor(whole), 1
            wanted = row.loss or (True,) * len(row.completion)
            labels[i, len(row.prompt) : len(whole)] = torch.where(
                torch.tensor(wanted), torch.tensor(row.completion), -100
            )
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if one.loss is not None:
            loss = one.loss(logits, chosen)
        else:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.clip)
        for name, scale in (scales or {}).items():
            named[name].grad.mul_(scale)
        optimizer.param_groups[0]["lr"] = rate(spec, step, steps)
        optimizer.step()
        losses.append(loss.item())
    return {n: p.detach().clone() for n, p in named.items()}, losses


def peft_loop(model, one: Case) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The student as a peft adapter of `model` (which is left alone), from the same first weights."""
    spec = one.student.spec
    rule = {"r": spec.rank, "4r": 4 * spec.rank, "rslora": spec.rank}
    targets = "all-linear" if spec.targets == ("all-linear",) else list(spec.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=rule.get(spec.alpha, spec.alpha),
        use_rslora=spec.alpha == "rslora",
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
    )
    start = new_stack(model, [spec]).groups[0].views
    wrapped = get_peft_model(copy.deepcopy(model), config)
    named = {
        n.removeprefix("base_model.model.").replace(".default.weight", ""): p
        for n, p in wrapped.named_parameters()
        if "lora_" in n
    }
    assert set(named) == set(start)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(start[name][0])
    return plain_loop(wrapped, named, one)


def full_loop(model, one: Case) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The student as a full fine-tune of a copy of `model`."""
    own = copy.deepcopy(model).requires_grad_(True)
    return plain_loop(own, dict(own.named_parameters()), one)


def distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor, by norms."""
    assert set(weights) == set(others)
    return max(
        float((w - others[n]).norm() / others[n].norm().clamp(min=1e-30))
        for n, w in weights.items()
    )


def random_stack(model, specs: Sequence[StudentSpec], seed: int = 0):
    """A stack of students whose B is not zero any more, so that they differ from the base and from each other."""
    stack = new_stack(model, specs)
    random = torch.Generator().manual_seed(seed)
    for group, row in stack.student_rows():
        noise = 0.05 * torch.randn(group.flat.shape[1], generator=random, dtype=torch.float64).to(
            group.flat.dtype
        )
        group.flat[row] += group.pad(row, group.unpad(row, noise))
    return stack


def merged(model, stack, place: int):
    """The student at `place` of a stack, in the stack's own order, as an ordinary model: W + s B A, or its own weights."""
    out, (group, row) = copy.deepcopy(model), stack.student_rows()[place]
    with torch.no_grad():
        if stack.kind == "full":
            for name, parameter in out.named_parameters():
                parameter.copy_(group.views[name][row])
        for name in stack.linears:
            a, b = group.views[f"{name}.lora_A"][row], group.views[f"{name}.lora_B"][row]
            out.get_parameter(f"{name}.weight").add_(stack.scales[place] * (b @ a))
    return out


def sample_answers(packed, filled, uniforms, sampling, stops):
    """[student][row of the prefill][sample] -> tokens, of one prefill alone."""
    k, b, s, _ = uniforms.shape
    out = [[[None] * s for _ in range(b)] for _ in range(k)]
    for done in sample_rows(packed, [(filled, uniforms)], sampling, stops, 10**6):
        out[done.student][filled.rows.index(done.row)][done.number] = done.ids
    return out
