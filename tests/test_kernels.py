"""The hand-written passes against autograd on the plain formulas, in float64; attention over flat tokens against a loop over rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import sublora.packs.fast.attention as attention
from sublora.packs.fast.attention import Asked, Heads, Layout, flat_attention, turns
from sublora.packs.fast.elementwise import gated, rms_norm
from sublora.packs.kernels import completion_loss, dense_weights, product


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()


def agree(ours, theirs, *inputs: torch.Tensor) -> None:
    """Equal values, and equal gradients of a random weighting of them."""
    out, expected = ours(*inputs), theirs(*inputs)
    assert torch.allclose(out, expected, atol=1e-12)
    weights = leaf(*out.shape, seed=9).detach()
    got = torch.autograd.grad((out * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("own", [False, True], ids=["frozen", "stacked"])
def test_rms_norm(own):
    def plain(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    agree(
        lambda x, w: rms_norm(x, w, 1e-5),
        plain,
        leaf(3, 5, 8),
        leaf(3, 1, 8, seed=1) if own else leaf(8, seed=1)[None, None],
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_product(bias, residual):
    inputs = [leaf(3, 5, 4), leaf(3, 6, 4, seed=1)]
    inputs += [leaf(3, 1, 6, seed=2)] * bias + [leaf(3, 5, 6, seed=3)] * residual

    def parts(extra):
        extra = list(extra)
        return (extra.pop(0) if bias else None), (extra.pop(0) if residual else None)

    def plain(x, w, *extra):
        return sum((e for e in extra), x @ w.mT)

    agree(lambda x, w, *extra: product(x, w, *parts(extra)), plain, *inputs)


def test_gated():
    agree(gated, lambda both: F.silu(both[..., :6]) * both[..., 6:], leaf(2, 5, 12))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_completion_loss(stacked, softcap, at_once):
    k, m, d, vocabulary = 2, 7, 4, 11
    targets = torch.arange(k * m).view(k, m) % vocabulary
    weights = torch.rand(k, m, dtype=torch.float64)
    head, bias = leaf(k, vocabulary, d, seed=1), leaf(k, 1, vocabulary, seed=2)

    def plain(hidden, head, bias):
        logits = hidden @ head.mT + bias
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        each = F.cross_entropy(
            logits.view(-1, vocabulary), targets.view(-1), reduction="none"
        ).view(k, m)
        return (each * weights).sum(1)

    def ours(hidden, head, bias):
        return completion_loss(hidden, head, bias, targets, weights, softcap, at_once)

    if stacked:
        agree(ours, plain, leaf(k, m, d), head, bias)
    else:
        frozen, shift = head[0].detach(), bias[0, 0].detach()
        agree(lambda h: ours(h, frozen, shift), lambda h: plain(h, frozen, shift), leaf(k, m, d))
    with torch.no_grad():
        assert torch.allclose(ours(leaf(k, m, d), head, bias), plain(leaf(k, m, d), head, bias))


def test_a_loss_far_beyond_float32_s_smallest_probability_stays_finite():
    head = torch.tensor([[200.0], [0.0]])
    hidden = torch.ones(1, 1, 1, requires_grad=True)
    loss = completion_loss(hidden, head, None, torch.tensor([[1]]), torch.ones(1, 1), None, 100)
    loss.sum().backward()
    assert loss.item() == pytest.approx(200.0) and torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("siblings", [1, 3])
def test_dense_weights(siblings):
    layers, o, i, ranks, scale = 2, 6, 4, (2, 3), torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    frozen = leaf(layers, o, i, seed=5).detach()
    groups = [slice(0, 2), slice(2, 3)]
    owner = torch.eye(siblings).repeat_interleave(o // siblings, 0).double()
    adapters = []
    for n, (part, r) in enumerate(zip(groups, ranks, strict=True)):
        count = (part.stop - part.start) * layers
        adapters += [leaf(count, siblings * r, i, seed=n), leaf(count, o, r, seed=n + 7)]
    parts = [(p, scale[p].repeat_interleave(layers).view(-1, 1, 1)) for p in groups]
    mask = None if siblings == 1 else {r: owner.repeat_interleave(r, 1) for r in ranks}

    def plain(*adapters):
        out = []
        for part, a, b, (_, s), r in zip(
            groups, adapters[::2], adapters[1::2], parts, ranks, strict=True
        ):
            a, b, s = (t.unflatten(0, (part.stop - part.start, layers)) for t in (a, b, s))
            each = [
                b[:, :, j * (o // siblings) : (j + 1) * (o // siblings)]
                @ a[:, :, j * r : (j + 1) * r]
                for j in range(siblings)
            ]
            out.append(frozen + s * torch.cat(each, 2))
        return torch.cat(out)

    agree(
        lambda *a: torch.stack(dense_weights(frozen, 3, parts, mask, list(a)), 1), plain, *adapters
    )


def rows_by_hand(both, heads: Heads, cos, sin, lengths, prefix):
    """Attention of every row alone: (K, M, query * width) with zeros at dummies."""
    out = torch.zeros(both.shape[0], both.shape[1], heads.query * heads.width, dtype=both.dtype)
    outputs = []
    for k, own in enumerate(lengths):
        x = both[k].view(-1, heads.all, heads.width)
        half = heads.width // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), -1) * sin[k].unsqueeze(1) + x * cos[
            k
        ].unsqueeze(1)
        q, key, value = (
            turned[:, : heads.query],
            turned[:, heads.query : -heads.key],
            x[:, -heads.key :],
        )
        start, places = prefix, {}
        for n in [0, *own] if prefix else own:
            index = [*range(prefix), *range(start, start + n)]
            parts = [t[index].transpose(0, 1) for t in (q, key, value)]
            keys, values = (t.repeat_interleave(heads.group, 0) for t in parts[1:])
            mask = torch.ones(len(index), len(index), dtype=torch.bool).tril()
            scores = (parts[0] @ keys.mT * heads.scaling).masked_fill(~mask, -torch.inf)
            attended = (scores.softmax(-1) @ values).transpose(0, 1).reshape(len(index), -1)
            places |= {p: attended[i] for i, p in enumerate(index) if p >= prefix or n == 0}
            start += n
        outputs.append(torch.stack([places.get(m, out[k, m]) for m in range(both.shape[1])]))
    return torch.stack(outputs)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(0, 3),
    st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_flat_attention(lengths, prefix, counts, explicit, asks, data):
    heads = Heads(*counts, width=4, scaling=0.7)
    k, b, t = len(lengths), 2, max(map(max, lengths))
    m = prefix + max(map(sum, lengths)) + 1
    tokens = torch.full((k, b, t), m - 1)
    for i, own in enumerate(lengths):
        at = prefix
        for j, n in enumerate(own):
            tokens[i, j, :n] = torch.arange(at, at + n)
            at += n
    angles = leaf(k, m, 2, seed=3).detach()
    cos, sin = (torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))
    wanted = asked = None
    if asks:  # one query of every row, and a second one of some
        own = [
            [sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=2))) for n in row]
            for row in lengths
        ]
        most = max(len(q) for row in own for q in row)
        at, slots, places = torch.full((k, b, most), -1), [], []
        for i, row in enumerate(own):
            slots.append([j * most + n for j, q in enumerate(row) for n in range(len(q))])
            places.append([int(tokens[i, j, x]) for j, q in enumerate(row) for x in q])
            for j, q in enumerate(row):
                at[i, j, : len(q)] = torch.tensor(q)
        width = max(map(len, slots))
        real = torch.tensor([[n < len(s) for n in range(width)] for s in slots])
        asked = Asked(at, torch.tensor([s + [0] * (width - len(s)) for s in slots]), real)
        wanted = torch.tensor([p + [p[0]] * (width - len(p)) for p in places])
    layout = Layout(tokens, m, prefix, heads, asked)
    seen = (torch.arange(m) < prefix + torch.tensor([sum(o) for o in lengths])[:, None]).unsqueeze(
        -1
    )

    def ours(both):
        out = flat_attention(both * 1.0, turns(cos, sin, heads), layout)
        return out * (seen if asked is None else asked.real.unsqueeze(-1))

    def plain(both):
        out = rows_by_hand(both, heads, cos, sin, lengths, prefix)
        if asked is None:
            return out
        return out.gather(
            1, wanted.unsqueeze(-1).expand(-1, -1, out.shape[-1])
        ) * asked.real.unsqueeze(-1)

    before = attention.EXPLICIT_KEYS
    attention.EXPLICIT_KEYS = 192 if explicit else 0
    try:
        agree(ours, plain, leaf(k, m, heads.all * heads.width))
    finally:
        attention.EXPLICIT_KEYS = before


def test_flat_attention_needs_no_gradient_of_a_dummy():
    """A dummy's numbers may be anything: they reach nobody."""
    heads = Heads(2, 2, 4, 0.5)
    tokens = torch.tensor([[[0, 1, 2], [3, 5, 5]]])
    cos, sin = torch.ones(1, 6, 4, dtype=torch.float64), torch.zeros(1, 6, 4, dtype=torch.float64)
    both = leaf(1, 6, 24)
    other = both.detach().clone()
    other[:, 4:] = 50.0
    layout = Layout(tokens, 6, 0, heads)
    one, two = (
        flat_attention(x * 1.0, turns(cos, sin, heads), layout)[:, :4] for x in (both, other)
    )
    assert torch.equal(one, two) and np.isfinite(one.detach().numpy()).all()
    (gradient,) = torch.autograd.grad(one.sum(), both)
    assert not gradient[:, 4:].any() and gradient[:, :4].any()
