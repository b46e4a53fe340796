"""Full fine-tunes in a pack: every module that owns parameters runs with the students' own, stacked."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sublora.errors import SubloraError
from sublora.packs.kernels import product
from sublora.packs.stack import Group

Forward = Callable[[Tensor], Tensor]


def full_forwards(model: nn.Module, group: Group) -> Iterator[tuple[nn.Module, Forward]]:
    """(module, its forward over (K * B, ...)), for a group of K students."""
    names = {id(p): n for n, p in model.named_parameters()}
    for module in model.modules():
        own = {n: names[id(p)] for n, p in module.named_parameters(recurse=False)}
        if type(module) is nn.Linear:
            yield module, _linear(own, group)
        elif isinstance(module, nn.Embedding):
            yield module, _embedding(module, own, group)
        elif own:
            yield module, _other(module, own, group)


def full_joint(
    group: Group,
    names: Sequence[str],
    biased: Sequence[bool],
    rows: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Outputs of linear layers with one input side by side, (K, M, o), plus the residual."""
    biases = [
        group.views[f"{n}.bias"].unsqueeze(1) if has else None
        for n, has in zip(names, biased, strict=True)
    ]
    joint = group.joint((tuple(f"{n}.weight" for n in names),))
    if joint is not None and (len(names) == 1 or not any(biased)):
        weight = joint.view(group.flat.shape[0], -1, joint.shape[-1])
        return product(rows, weight, biases[0], residual)
    weights = [group.views[f"{n}.weight"] for n in names]
    out = torch.cat([product(rows, *own) for own in zip(weights, biases, strict=True)], -1)
    return out if residual is None else residual + out


def _linear(own: dict[str, str], group: Group) -> Forward:
    def forward(x: Tensor) -> Tensor:
        weight = group.views[own["weight"]]
        bias = group.views[own["bias"]].unsqueeze(1) if "bias" in own else None
        rows = x.reshape(len(weight), -1, x.shape[-1])
        return product(rows, weight, bias).view(*x.shape[:-1], -1)

    return forward


def _embedding(module: nn.Embedding, own: dict[str, str], group: Group) -> Forward:
    scale = getattr(module, "embed_scale", None)  # Gemma's embedding multiplies what it looks up
    silent = module.padding_idx  # torch gives the row of this token no gradient

    def forward(ids: Tensor, *more: object, **named: object) -> Tensor:
        if more or named:
            raise _not_plain(module, "takes more than one input")
        table = group.views[own["weight"]]
        first = torch.arange(len(table), device=ids.device).view(-1, 1) * table.shape[1]
        flat = (ids.reshape(len(table), -1) + first).reshape(ids.shape)
        out = F.embedding(flat, table.reshape(-1, table.shape[-1]))
        if silent is not None and out.requires_grad:
            out = torch.where((ids == silent).unsqueeze(-1), out.detach(), out)
        return out if scale is None else out * scale.to(out.dtype)

    return forward


def _other(module: nn.Module, own: dict[str, str], group: Group) -> Forward:
    inner = _Unpatched(module)

    def single(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        named = {f"inner.{n}": p for n, p in parameters.items()}
        return torch.func.functional_call(inner, named, (x,))

    def forward(x: Tensor, *more: object, **named: object) -> Tensor:
        if more or named:
            raise _not_plain(module, "takes more than one input")
        stacked = {n: group.views[full] for n, full in own.items()}
        rows = x.reshape(group.flat.shape[0], -1, *x.shape[1:])
        out = torch.func.vmap(single)(stacked, rows)
        if not isinstance(out, Tensor) or out.numel() != x.numel():
            raise _not_plain(module, "gives more than one output, or one of another shape")
        return out.view_as(x)

    return forward


def _not_plain(module: nn.Module, what: str) -> SubloraError:
    return SubloraError(f"its layer {type(module).__name__} {what}; drop train.full")


class _Unpatched(nn.Module):
    """The module with its class's forward, so that a patched one is called without its patch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return type(self.inner).forward(self.inner, x)
