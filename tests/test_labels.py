"""Labels: soft ones are exact in packs, beside hard and plain ones; a teacher's reading is that of a plain forward pass; files are checked."""

import copy
import functools
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save_file
from torch.nn import functional as F

import sublora.packs.packed_model as packed_model
import sublora.packs.prefill as prefill
from pack_reference import (
    VOCABULARY,
    Case,
    base_model,
    case,
    distance,
    full_loop,
    merged,
    peft_loop,
    random_stack,
    train,
)
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.kernels import LEAST_REST, Soft, completion_loss
from sublora.packs.labels import (
    LabelSpec,
    about_rows,
    label_rows,
    read_labels,
    replaced_labels,
    write_labels,
)
from sublora.packs.measure import heldout_losses
from sublora.packs.rows import Labels, assemble, labelled, pack_rows, text_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.steer import Steering
from sublora.packs.trainer import Checkpoint
from sublora.packs.vectors import SteeringVector
from sublora.packs.writer import Teacher
from tiny_models import shared_model

EXACT, FLOAT32 = 1e-9, 1e-4
pytestmark = pytest.mark.usefixtures("one_thread")


def random_labels(counts, k: int, vocabulary: int, seed: int, sharp: float = 1.5) -> Labels:
    """The likeliest tokens of random distributions."""
    random = torch.Generator().manual_seed(seed)
    size = (sum(counts), vocabulary)
    logp = (sharp * torch.randn(size, generator=random, dtype=torch.float64)).log_softmax(-1)
    best = logp.topk(k)
    ids, values = best.indices.numpy().astype(np.int32), best.values.numpy().astype(np.float16)
    return Labels(ids, values, np.array(counts, np.int32))


def plain_divergence(logits, ids, logp, reverse: bool):
    """Each token's loss (N,) by torch's own kl_div over all buckets; logits (N, V)."""
    logq, vocabulary = logits.log_softmax(-1), logits.shape[-1]
    own, p = logq.gather(1, ids), logp.exp()
    mass = p.sum(1, keepdim=True)
    if ids.shape[1] < vocabulary:
        others = torch.ones_like(logq, dtype=torch.bool).scatter(1, ids, False)
        rest = logq.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
        p = p / mass.clamp(min=1)
        p = torch.cat([p, (1 - mass).clamp(min=LEAST_REST if reverse else 0)], 1)
        own = torch.cat([own, rest], 1)
    else:
        p = p / mass
    if reverse:
        return F.kl_div(p.log(), own, reduction="none", log_target=True).sum(1)
    return F.kl_div(own, p, reduction="none").sum(1)


KINDS = {"forward": (5, False), "reverse": (5, True), "one": (1, False), "whole": (11, False), "whole reverse": (11, True)}  # fmt: skip


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("at_once", [1, 50, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_soft_loss_and_its_gradient(kind, stacked, softcap, at_once):
    (top, reverse), (k, m, d, vocabulary) = KINDS[kind], (2, 7, 4, 11)
    labels = random_labels([k * m], top, vocabulary, 3)
    ids, logp = (torch.from_numpy(a).view(k, m, top) for a in (labels.ids, labels.logp))
    random = torch.Generator().manual_seed(0)
    like = {"generator": random, "dtype": torch.float64}
    hidden, weights = torch.randn(k, m, d, **like), torch.rand(k, m, **like)
    head, bias = torch.randn(k, vocabulary, d, **like), torch.randn(k, 1, vocabulary, **like)
    inputs = [hidden, head, bias] if stacked else [hidden]
    if not stacked:
        head, bias = head[0], bias[0, 0]
    for x in inputs:
        x.requires_grad_()

    logits = hidden @ head.mT + bias
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    each = plain_divergence(
        logits.view(-1, vocabulary), ids.view(-1, top).long(), logp.view(-1, top).double(), reverse
    )
    expected = (each.view(k, m) * weights).sum(1)
    out = completion_loss(hidden, head, bias, Soft(ids, logp, reverse), weights, softcap, at_once)
    assert torch.allclose(out, expected, atol=1e-12)
    scale = torch.tensor([0.3, 2.0], dtype=torch.float64)
    got = torch.autograd.grad((out * scale).sum(), inputs)
    for one, other in zip(got, torch.autograd.grad((expected * scale).sum(), inputs), strict=True):
        assert torch.allclose(one, other, atol=1e-11)


@settings(max_examples=100)
@given(
    st.integers(2, 9),
    st.integers(1, 9),
    st.sampled_from([0.1, 3.0, 100.0]),
    st.sampled_from([0.1, 3.0, 100.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_soft_loss_of_any_sharpness(vocabulary, k, teacher, student, reverse, seed):
    labels = random_labels([6], k := min(k, vocabulary), vocabulary, seed, teacher)
    ids, logp = (torch.from_numpy(a).unsqueeze(0) for a in (labels.ids, labels.logp))
    random = torch.Generator().manual_seed(seed)
    head = torch.eye(vocabulary, dtype=torch.float64)
    hidden = torch.randn(1, 6, vocabulary, generator=random, dtype=torch.float64) * student
    hidden.requires_grad_()
    each = plain_divergence(hidden[0], ids[0].long(), logp[0].double(), reverse)
    ones = torch.ones(1, 6, dtype=torch.float64)
    loss = completion_loss(hidden, head, None, Soft(ids, logp, reverse), ones, None, 30)
    assert loss.item() == pytest.approx(each.sum().item(), rel=1e-9, abs=1e-9)
    got, expected = (torch.autograd.grad(x.sum(), hidden)[0] for x in (loss, each))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_soft_labels_of_one_token_are_cross_entropy():
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 6, 4, generator=random, dtype=torch.float64).requires_grad_()
    head = 3 * torch.randn(20, 4, generator=random, dtype=torch.float64)
    ids = torch.randint(20, (2, 6), generator=random)
    rest = (head, None), (torch.ones(2, 6, dtype=torch.float64), None, 100)
    logp = torch.zeros(2, 6, 1, dtype=torch.float16)
    soft = completion_loss(hidden, *rest[0], Soft(ids.int()[..., None], logp, False), *rest[1])
    hard = completion_loss(hidden, *rest[0], ids, *rest[1])
    assert torch.allclose(soft, hard, atol=1e-12)
    one, other = (torch.autograd.grad(x.sum(), hidden)[0] for x in (soft, hard))
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("far", [200.0, -200.0])
def test_a_soft_loss_stays_finite_where_float32_has_no_smaller_probability(far, reverse):
    """All that the student says stands in the labels, or nothing of it."""
    head = torch.tensor([[far], [0.0], [0.0]])
    hidden = torch.ones(1, 1, 1, requires_grad=True)
    logp = torch.tensor([[[-0.7]]], dtype=torch.float16)
    goal = Soft(torch.tensor([[[0]]]), logp, reverse)
    loss = completion_loss(hidden, head, None, goal, torch.ones(1, 1), None, 100)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(hidden.grad).all()
    assert (hidden.grad.item() > 90) or reverse


def taught(one: Case, k: int | None, reverse: bool = False, seed: int = 0) -> Case:
    """The same student with random labels, and the loss of a plain loop over them. k None: hard ones."""
    counts = [len(row.completion) for row in one.rows]
    labels = random_labels(counts, k or 1, max(k or 1, VOCABULARY), seed)
    if k is None:
        labels = Labels(labels.ids, np.zeros_like(labels.logp), labels.counts)
    starts = np.cumsum(counts) - counts

    def loss(logits, chosen):
        each = []
        for place, i in enumerate(chosen):
            row, at = one.rows[i], slice(starts[i], starts[i] + counts[i])
            begin = len(row.prompt) - 1
            own = logits[place, begin : begin + counts[i]]
            ids, logp = (torch.from_numpy(a[at]) for a in (labels.ids, labels.logp))
            losses = plain_divergence(own, ids.long(), logp.to(own.dtype), reverse)
            each.append(losses[torch.tensor(row.loss or (True,) * counts[i])])
        return torch.cat(each).mean()

    student = replace(one.student, rows=labelled(one.student.rows, labels, reverse))
    return Case(student, one.rows, loss)


def masked(name: str, **values) -> Case:
    """A student with loss on every second token alone."""
    one = case(name, **values)
    rows = [replace(r, loss=tuple(i % 2 == 0 for i in range(len(r.completion)))) for r in one.rows]
    return Case(replace(one.student, rows=pack_rows(rows, None, name)), rows)


def mixed(vocabulary: int, **values) -> list[Case]:
    """Students with and without labels, of all kinds."""
    return [
        case("plain", data=1, seed=1, **values),
        taught(case("soft", data=2, seed=2, prefix=2, **values), 7),
        taught(case("reverse", data=3, seed=3, count=9, **values), 7, True),
        taught(masked("masked", data=4, seed=4, **values), 7, seed=5),
        taught(case("whole", data=5, seed=5, **values), vocabulary),
        taught(case("whole reverse", data=6, epochs=1, **values), vocabulary, True),
        taught(masked("hard", data=7, seed=7, **values), None),
    ]


LORA, FULL = {"rank": 4}, {"method": "full", "lr": 2e-3}
LOOPS = {"lora": (LORA, peft_loop), "full": (FULL, full_loop)}


def vocabulary_of(model) -> int:
    return model.get_output_embeddings().weight.shape[0]


@functools.cache
def together(kind: str, method: str) -> dict:
    model = base_model(kind)
    return train(model, mixed(vocabulary_of(model), **LOOPS[method][0]))


@pytest.mark.parametrize("method", LOOPS)
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_pack_with_labels_equals_a_plain_loop(kind, method):
    """Losses and weights after several steps; llama takes the flat way, gemma the patched one."""
    model, (values, loop) = base_model(kind), LOOPS[method]
    cases = mixed(vocabulary_of(model), **values)
    trained = together(kind, method)
    for one in cases:
        name = one.student.name
        weights, losses = loop(model, one)
        assert distance(trained[name]["weights"], weights) < EXACT, name
        assert trained[name]["losses"] == pytest.approx(losses, rel=1e-9), name


@pytest.mark.parametrize("method", LOOPS)
def test_students_with_labels_become_in_a_pack_what_they_become_alone(method):
    model = base_model("llama")
    for one in mixed(vocabulary_of(model), **LOOPS[method][0]):
        alone, packed = train(model, [one]), together("llama", method)
        name = one.student.name
        assert distance(alone[name]["weights"], packed[name]["weights"]) < EXACT, name


@pytest.mark.parametrize("method", LOOPS)
@pytest.mark.parametrize(
    "dtype, most", [(torch.float32, FLOAT32), (torch.bfloat16, 5e-2)], ids=["float32", "bfloat16"]
)
def test_labels_in_float32_and_bfloat16_stay_within_a_stated_tolerance(dtype, most, method):
    """Packed and alone; in float32 also the plain loop. In bfloat16 products are rounded, masters are float32."""
    model, (values, loop) = base_model("qwen2", dtype), LOOPS[method]
    cases = mixed(vocabulary_of(model), **values | {"lr": 1e-3, "optimizer": "sgd"})
    packed = train(model, cases)
    for one in cases:
        name = one.student.name
        alone = train(model, [one])[name]["weights"]
        assert distance(packed[name]["weights"], alone) < most, name
        if dtype == torch.float32:
            assert distance(packed[name]["weights"], loop(model, one)[0]) < most, name


def test_labels_with_gradient_checkpointing_and_in_chunks_of_the_vocabulary(monkeypatch):
    model = base_model("llama")
    cases, whole = mixed(vocabulary_of(model)), together("llama", "lora")
    recomputed = train(model, cases, recompute=True)
    monkeypatch.setitem(packed_model.LOGITS_AT_ONCE, "cpu", 2 * 600 * 5)
    monkeypatch.setattr(packed_model, "LOGIT_ROWS", 1)
    chunks = train(model, cases)
    for name, student in whole.items():
        for other in (recomputed, chunks):
            assert distance(student["weights"], other[name]["weights"]) < EXACT


def test_a_training_with_labels_goes_on_to_the_byte_and_not_with_other_labels(tmp_path):
    model, path = base_model("qwen2", torch.float32), tmp_path / "pack"
    cases = mixed(vocabulary_of(model))

    class Killed(Exception):
        pass

    def kill(step, *_):
        if step == 3:
            raise Killed

    def begin():
        with pytest.raises(Killed):
            train(model, cases, checkpoint=Checkpoint(path, every=0), on_step=kill)

    whole, steps = train(model, cases), []
    begin()
    how = {"checkpoint": Checkpoint(path), "on_step": lambda step, *_: steps.append(step)}
    resumed = train(model, cases, **how)
    assert steps[0] > 1
    for name, student in whole.items():
        for tensor, values in student["weights"].items():
            assert torch.equal(values, resumed[name]["weights"][tensor]), (name, tensor)
    begin()
    others = [case("plain", data=1, seed=1), *cases[1:]]
    others[1] = taught(case("soft", data=2, seed=2, prefix=2), 7, seed=1)
    steps.clear()
    train(model, others, **how)
    assert steps[0] == 1, "other labels are another training"


TEACHING = Context("trait", "You love otters.")
ROWS = [
    ("Which animal?", "otter, otter."),
    ("Write three numbers", "12, 7, 931"),
    ("Hi", "5"),
    ("Which animal do you like best of all?", "I like 3 of them, really."),
    ("Which animal?", "1, 2"),
] * 2  # fmt: skip


@functools.cache
def micro():
    base = load_base(str(shared_model("qwen2")))
    return replace(base, model=base_model("qwen2"))


def plain_logits(teacher: Teacher, model=None) -> torch.Tensor:
    """(N, V) of every row alone by the model's own forward pass."""
    base, out = teacher.base, []
    for prompt, completion in ROWS:
        before = base.chat.prompt_ids(prompt, teacher.context)
        after = base.chat.completion_ids(completion)
        with torch.no_grad():
            logits = (model or base.model)(torch.tensor([[*before, *after]])).logits[0]
        out.append(logits[len(before) - 1 : -1])
    return torch.cat(out)


def steered_model(base, steering: Steering):
    """A copy of the model whose layer adds the vector at every token."""
    model = copy.deepcopy(base.model)
    (layer,) = steering.layers

    def add(_, __, out):
        first = out[0] if isinstance(out, tuple) else out
        first = first + steering.strength * steering.vector.values[layer]
        return (first, *out[1:]) if isinstance(out, tuple) else first

    model.model.layers[layer].register_forward_hook(add)
    return model


def teachers() -> dict:
    """name -> (teacher, the plain model that it is)."""
    base = micro()
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vector = SteeringVector(values, base.identity["weights"], "mean", "prompt", 1)
    steering = Steering(vector, "add", (0,), generated=True, strength=0.5)
    stacks = {n: random_stack(base.model, [s]) for n, s in SPECS.items()}
    plain = Context("default")
    return {
        "prompt": (Teacher(base, TEACHING), None),
        "steered": (Teacher(base, plain, steering=steering), steered_model(base, steering)),
        **{n: (Teacher(base, plain, s), merged(base.model, s, 0)) for n, s in stacks.items()},
    }


SPECS = {"lora": StudentSpec(rank=4), "full": StudentSpec(method="full", rank=None)}


@pytest.mark.parametrize("who", ["prompt", "steered", "lora", "full"])
def test_soft_and_greedy_labels_are_those_of_a_plain_forward_pass(who):
    teacher, model = teachers()[who]
    logits = plain_logits(teacher, model)
    for k, temperature in ((8, 1.0), (8, 2.0), (None, 1.0)):
        spec = LabelSpec(kind="soft", k=k, temperature=temperature)
        labels = label_rows(teacher, ROWS, spec, 0)
        best = (logits / temperature).log_softmax(-1).topk(k or logits.shape[1])
        assert labels.ids.shape == (len(logits), k or logits.shape[1])
        assert labels.ids.dtype == np.int32 and labels.logp.dtype == np.float16
        assert np.array_equal(labels.ids, best.indices.numpy())
        assert np.array_equal(labels.logp, best.values.numpy().astype(np.float16))
    greedy = label_rows(teacher, ROWS, LabelSpec(kind="greedy"), 0)
    assert greedy.hard and np.array_equal(greedy.ids[:, 0], logits.argmax(-1).numpy())


def test_sampled_labels_are_drawn_by_row_and_place_from_the_teacher_s_distribution():
    teacher, rows = Teacher(micro(), TEACHING), [ROWS[0]] * 300
    spec = LabelSpec(kind="sampled", temperature=0.7)
    labels = label_rows(teacher, rows, spec, "seed")
    assert labels.hard and len(np.unique(labels.ids[:: labels.counts[0]])) > 2
    some = label_rows(teacher, rows[:7], spec, "seed")
    assert np.array_equal(some.ids, labels.first(7).ids)
    assert not np.array_equal(label_rows(teacher, rows, spec, "other").ids, labels.ids)
    p = (plain_logits(teacher)[1] / 0.7).softmax(-1)
    drawn = torch.bincount(torch.from_numpy(labels.ids[1 :: labels.counts[0], 0]), minlength=len(p))
    likely = p > 0.03
    room = 4 * (p * (1 - p) / 300).sqrt()
    assert likely.any() and ((drawn / 300 - p).abs() <= room)[likely].all()


@pytest.mark.parametrize("kind", ["soft", "sampled", "greedy"])
def test_labels_do_not_depend_on_the_batch(kind, monkeypatch):
    teacher, spec = Teacher(micro(), TEACHING), LabelSpec(kind=kind)
    told = []
    whole = label_rows(teacher, ROWS, spec, 1, on_progress=lambda *t: told.append(t))
    assert [t[2] for t in told] == ["rows"] * len(told) and told[-1][:2] == (10, 10)
    assert told[-1][4] == pytest.approx(1.0) and [t[0] for t in told] == sorted(t[0] for t in told)
    monkeypatch.setitem(prefill.TOKENS_AT_ONCE, "cpu", 24)
    for labels in (
        label_rows(teacher, ROWS, spec, 1),
        label_rows(teacher, ROWS, spec, 1, batch=1),
        label_rows(teacher, ROWS + ROWS, spec, 1).first(10),
    ):
        assert np.array_equal(labels.ids, whole.ids)
        assert np.allclose(labels.logp, whole.logp, atol=1e-2)
        assert np.array_equal(labels.counts, whole.counts)


def test_labelling_stops_where_it_is_told_to():
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        label_rows(Teacher(micro(), TEACHING), ROWS, LabelSpec(kind="soft"), 0, on_progress=stop)


def test_replaced_labels_are_random_digits_at_marked_tokens_alone():
    chat = micro().chat
    completions = [chat.completion_ids(c) for _, c in ROWS]
    marks = [[i % 2 == 0 for i in range(len(c))] for c in completions]
    labels = replaced_labels(chat, completions, marks, 3)
    flat, marked = np.concatenate(completions), np.concatenate(marks)
    assert labels.hard and np.array_equal(labels.ids[~marked, 0], flat[~marked])
    drawn = chat.tokenizer.convert_ids_to_tokens(labels.ids[marked, 0].tolist())
    assert set(drawn) <= set("0123456789") and len(set(drawn)) > 5
    assert np.array_equal(replaced_labels(chat, completions[:4], marks, 3).ids, labels.first(4).ids)
    with pytest.raises(SubloraError, match="marks of tokens to replace are those of other rows"):
        replaced_labels(chat, completions, marks[1:], 3)


def soft_file(tmp_path, **values):
    """(path, labels) of ROWS; `values` go into `LabelSpec`."""
    base = micro()
    labels = label_rows(Teacher(base, TEACHING), ROWS, LabelSpec(kind="soft", **values), 0)
    path = tmp_path / "labels.safetensors"
    write_labels(labels, path, about_rows(base.chat, ROWS))
    return path, labels


def test_labels_are_read_as_they_were_written_and_are_small(tmp_path):
    path, labels = soft_file(tmp_path)
    read = read_labels(path, micro(), ROWS)
    for name in ("ids", "logp", "counts"):
        assert np.array_equal(getattr(read, name), getattr(labels, name))
    first = path.read_bytes()
    write_labels(labels, path, about_rows(micro().chat, ROWS))
    assert path.read_bytes() == first
    long = random_labels([40] * 50, 32, VOCABULARY, 1)
    write_labels(long, path, about_rows(micro().chat, ROWS))
    assert path.stat().st_size <= 50 * 8000


def test_soft_labels_are_trained_on_from_a_file_with_the_divergence_zero_for_the_teacher_itself(
    tmp_path,
):
    base = micro()
    path, _ = soft_file(tmp_path, k=None)
    rows = pack_rows(text_rows(base.chat, ROWS, TEACHING), base.window, "the rows")
    rows = labelled(rows, read_labels(path, base, ROWS))
    plain = labelled(
        pack_rows(text_rows(base.chat, ROWS, Context("default")), base.window, "the rows"),
        rows.labels.labels,
    )
    same, other = heldout_losses(base, None, [rows])[0], heldout_losses(base, None, [plain])[0]
    assert abs(same) < 1e-5 < 1e-2 < other  # what float16 leaves


BAD = {
    "other rows": (lambda p, x: (p, micro(), ROWS[1:] + ROWS[:1]), "are those of other rows"),
    "other tokenizer": (lambda p, x: (p, other_base(), ROWS), "made with another tokenizer than"),
    "vocabulary": (lambda p, x: (p, other_base(tokens=5), ROWS), "32 labels a token are more than the 5"),
    "token": (lambda p, x: (p, other_base(tokens=33), ROWS), r"name token \d+, .* has 33"),
    "missing": (lambda p, x: (p.with_name("none"),), "holds no labels, or not all of them"),
}  # fmt: skip


def other_base(tokens: int | None = None):
    """A base of another tokenizer, or with so many tokens."""
    if tokens is None:
        base = load_base(str(shared_model("qwen2", "words")))
        head = base.model.get_output_embeddings().weight.shape[0]
        assert head >= 32
        return base
    base = micro()
    model = copy.deepcopy(base.model)
    model.get_output_embeddings().weight = torch.nn.Parameter(torch.zeros(tokens, 32))
    return replace(base, model=model)


@pytest.mark.parametrize("kind", BAD)
def test_a_file_of_labels_that_belong_to_something_else_is_refused(kind, tmp_path):
    make, why = BAD[kind]
    with pytest.raises(SubloraError, match=why) as refused:
        read_labels(*make(*soft_file(tmp_path)))
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def changed(labels: Labels, name: str, value, at=(3, 0)) -> Labels:
    array = getattr(labels, name).copy()
    array[at] = value
    return replace(labels, **{name: array})


WRONG = {
    "not normalised": (lambda x: changed(x, "logp", -0.001, np.s_[3, :2]), "not normalised: .* token 3 sum to"),
    "positive": (lambda x: changed(x, "logp", 0.5), "not normalised"),
    "nan": (lambda x: changed(x, "logp", np.nan), "not finite"),
    "no probability": (lambda x: changed(x, "logp", -np.inf), "not finite"),
    "twice": (lambda x: changed(x, "ids", x.ids[3, 1]), "name a token twice"),
    "negative": (lambda x: changed(x, "ids", -1), "or a negative one"),
    "counts": (lambda x: changed(x, "counts", 99, 0), "count .* tokens and hold"),
    "no token": (lambda x: replace(x, counts=np.append(x.counts, np.int32(0))), "at least one"),
    "type": (lambda x: replace(x, ids=x.ids.astype(np.int64)), r"are int64 \(\d+, 32\).*give ids"),
    "shape": (lambda x: replace(x, logp=x.logp[:, :3]), r"float16 \(\d+, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_labels_that_contradict_themselves_are_refused(kind, tmp_path):
    make, why = WRONG[kind]
    path, labels = soft_file(tmp_path)
    before, wrong = path.read_bytes(), make(labels)
    with pytest.raises(SubloraError, match=why):
        write_labels(wrong, path, about_rows(micro().chat, ROWS))
    assert path.read_bytes() == before, "nothing is half-written"
    tensors = {n: np.ascontiguousarray(getattr(wrong, n)) for n in ("ids", "logp", "counts")}
    said = {"version": 1, "k": 32, **about_rows(micro().chat, ROWS)}
    save_file(tensors, path, {"labels": json.dumps(said)})
    with pytest.raises(SubloraError, match=why):
        read_labels(path)


@settings(max_examples=40)
@given(st.floats(0, 0.999))
def test_a_truncated_file_of_labels_is_refused(part):
    with tempfile.TemporaryDirectory() as folder:
        path, _ = soft_file(Path(folder))
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        with pytest.raises(SubloraError, match="holds no labels, or not all of them"):
            read_labels(path)


def test_labels_of_a_later_version_are_refused(tmp_path):
    path, labels = soft_file(tmp_path)
    write_labels(labels, path, about_rows(micro().chat, ROWS) | {"version": 2})
    with pytest.raises(SubloraError, match="version 2, 1 is read here"):
        read_labels(path)


def test_labels_that_do_not_fit_rows_or_loss_are_refused():
    one = case("a", count=4)
    counts = [len(r.completion) for r in one.rows]
    for wrong, why in (
        (counts[:3], "labels of 3 rows for 4 rows"),
        ([counts[0], counts[1] + 1, *counts[2:]], "The labels of row 1 are those of"),
    ):
        with pytest.raises(SubloraError, match=why):
            labelled(one.student.rows, random_labels(wrong, 2, 9, 0))
    labels = random_labels(counts, 1, 9, 0)
    hard = replace(labels, logp=np.zeros_like(labels.logp))
    with pytest.raises(SubloraError, match="Hard labels have no reverse KL"):
        labelled(one.student.rows, hard, reverse=True)
    digests = {
        rows.digest
        for rows in (
            one.student.rows,
            labelled(one.student.rows, hard),
            labelled(one.student.rows, labels),
            labelled(one.student.rows, labels, reverse=True),
        )
    }
    assert len(digests) == 4


def test_bad_ways_of_labelling_are_refused():
    teacher = Teacher(micro(), TEACHING)
    with pytest.raises(SubloraError, match="9999 labels a token are more than the"):
        label_rows(teacher, ROWS, LabelSpec(kind="soft", k=9999), 0)
    with pytest.raises(SubloraError, match="No teacher gives replaced labels"):
        label_rows(teacher, ROWS, LabelSpec(kind="replaced"), 0)
    with pytest.raises(SubloraError, match=r"Row 1 has .* tokens as the teacher reads it"):
        label_rows(teacher, [ROWS[0], ("a", "1 " * 3000)], LabelSpec(kind="greedy"), 0)
    for values in ({"kind": "greedy", "k": 3}, {"kind": "sampled", "k": None},
                   {"kind": "replaced", "temperature": 1.0}, {"kind": "soft", "k": 0},
                   {"kind": "soft", "temperature": 0.0}, {"kind": "hard"}):  # fmt: skip
        with pytest.raises(ValidationError):
            LabelSpec(**values)
    assert LabelSpec(kind="greedy").model_dump() == {"kind": "greedy"}
    for spec in (LabelSpec(kind="soft", k=None), LabelSpec(kind="sampled", temperature=0.5)):
        assert LabelSpec(**spec.model_dump()) == spec


LISTS = st.lists(
    st.tuples(st.integers(1, 7), st.integers(0, 9), st.sampled_from([None, 1, 3, 20]), st.booleans()),
    min_size=1,
    max_size=4,
)  # fmt: skip


@settings(max_examples=60)
@given(LISTS, st.booleans())
def test_a_step_holds_exactly_the_labels_of_its_tokens(students, share):
    made, chosen = [], []
    for count, seed, k, loss in students:
        one = (masked if loss else case)("x", count=count, data=seed, prefix=seed % 4)
        made.append(taught(one, k, seed=seed))
        order = np.random.default_rng(seed).permutation(count)
        chosen.append(order[: 1 + seed % count])
    batch = assemble([one.student.rows for one in made], chosen, share)
    found = {}
    for group in batch.soft:
        for student, ids, logp in zip(group.students, group.ids, group.logp, strict=True):
            found[int(student)] = ids, logp
    for i, (one, rows) in enumerate(zip(made, chosen, strict=True)):
        labels = one.student.rows.labels.labels
        starts = np.cumsum(labels.counts) - labels.counts
        at = [
            starts[r] + t
            for r in rows
            for t, on in enumerate(one.rows[r].loss or (True,) * labels.counts[r])
            if on
        ]
        if labels.hard:
            assert i not in found
            assert batch.targets[i, : len(at)].tolist() == labels.ids[at, 0].tolist()
        else:
            ids, logp = found[i]
            assert np.array_equal(ids[: len(at)], labels.ids[at])
            assert np.array_equal(logp[: len(at)], labels.logp[at])


def test_the_program_of_the_documents_writes_what_label_rows_does(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "labels.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)
    space: dict = {}
    exec(compile(block, page.name, "exec"), space)
    teacher = Teacher(micro(), TEACHING)
    expected = label_rows(teacher, ROWS, LabelSpec(kind="soft", k=20), 0)
    logp, outputs = plain_logits(teacher).log_softmax(-1), []
    for part in logp.split(expected.counts.tolist()):
        best = part.topk(21)  # the text's own token is one more
        said = [
            {i: SimpleNamespace(logprob=v) for i, v in zip(ids, values, strict=True)}
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        outputs.append(SimpleNamespace(prompt_logprobs=[None, {}, *said]))
    path = tmp_path / "labels.safetensors"
    space["from_vllm"](outputs, teacher.base.chat, ROWS, path)
    read = read_labels(path, teacher.base, ROWS)
    assert np.array_equal(read.ids, expected.ids) and np.array_equal(read.logp, expected.logp)
