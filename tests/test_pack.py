"""Packed = alone = peft with a plain loop, full fine-tunes alike; neighbours, resuming, diverging and bad input."""

import copy
import functools
import json
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM, get_scheduler

import sublora.packs.fit as fit
import sublora.packs.packed_model as packed_model
import sublora.packs.trainer as pack
import sublora.packs.weights as step_weights
from pack_reference import (
    KINDS,
    Case,
    base_model,
    case,
    distance,
    full_loop,
    peft_loop,
    random_rows,
    train,
)
from sublora.errors import SubloraError
from sublora.packs.packed_model import PackedModel
from sublora.packs.rows import TokenRow, assemble, pack_rows, rows_of_step
from sublora.packs.spec import StudentSpec, learning_rate, total_steps
from sublora.packs.stack import new_stack
from sublora.packs.student_files import load_stack, save_student
from sublora.packs.trainer import Checkpoint

FORMS = {"dense": True, "low": False}
# Relative norms of every tensor. 1e-9 needs norms in float64 (see `base_model`); with Transformers' own float32 norms 1e-6 is left.
EXACT, FLOAT32 = 1e-9, 1e-4


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=FORMS, ids=list(FORMS))
def form(request, monkeypatch) -> str:
    """Both forms of a LoRA layer, forced in turn."""
    monkeypatch.setattr(step_weights, "dense_is_cheaper", lambda *_: FORMS[request.param])
    return request.param


@pytest.mark.parametrize(("small", "inside"), [(20_000_000, 1), (1000, 2)])
def test_a_small_model_is_computed_by_one_thread_whatever_was_set(small, inside, monkeypatch):
    monkeypatch.setattr(packed_model, "SMALL_MODEL", small)
    torch.set_num_threads(2)
    with PackedModel(base_model(), None):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 2


def mixed(top: int = 16):
    """Students that differ in all that a student may have of its own."""
    sgd = {"rank": 4, "optimizer": "sgd"}
    return [
        case("one", rank=1, data=1, count=9, seed=1),
        case(
            "wide",
            rank=top,
            data=2,
            seed=2,
            alpha="4r",
            weight_decay=0.1,
            schedule="cosine",
            betas=(0.8, 0.95),
            eps=1e-6,
        ),
        case(
            "momentum",
            **sgd,
            data=3,
            seed=3,
            alpha="rslora",
            momentum=0.9,
            lr=0.05,
            clip=0.5,
            prefix=2,
        ),
        case(
            "sgd",
            **sgd,
            data=3,
            seed=3,
            alpha=2.5,
            lr=0.1,
            weight_decay=0.01,
            batch_size=3,
            schedule="constant",
        ),
        case("short", rank=4, data=5, seed=4, epochs=1, warmup_steps=0),
    ]


@functools.cache
def peft_weights(kind: str):
    model = base_model(kind)
    return {c.student.name: peft_loop(model, c) for c in mixed()}


@pytest.mark.parametrize("kind", KINDS)
def test_pack_equals_peft_with_a_plain_loop(kind, form):
    trained = train(base_model(kind), mixed())
    for name, (weights, losses) in peft_weights(kind).items():
        assert distance(trained[name]["weights"], weights) < EXACT, name
        assert trained[name]["losses"] == pytest.approx(losses, rel=1e-9), name


def test_pack_equals_alone_with_the_norms_of_transformers():
    model = base_model("llama", exact_norms=False)
    together = train(model, mixed())
    for one in mixed():
        name = one.student.name
        assert distance(together[name]["weights"], train(model, [one])[name]["weights"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_pack_of_ranks_1_to_64_equals_peft_after_50_steps(dtype, form):
    model = base_model("wide", dtype)
    kinds = {
        "adamw": {"lr": 2e-3},
        "sgd": {"optimizer": "sgd", "lr": 0.05},
        "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    }
    cases = [
        case(
            f"{rank} {name}",
            rank=rank,
            data=rank,
            seed=rank,
            count=40,
            batch_size=4,
            epochs=5,
            **values,
        )
        for rank in (1, 2, 8, 32, 64)
        for name, values in kinds.items()
    ]
    trained = train(model, cases)
    for one in cases:
        assert len(trained[one.student.name]["losses"]) == 50
        assert distance(trained[one.student.name]["weights"], peft_loop(model, one)[0]) < (
            EXACT if dtype == torch.float64 else FLOAT32
        )


SPECS = st.fixed_dictionaries({
    "rank": st.integers(1, 16), "seed": st.integers(0, 5), "data": st.integers(0, 5), "count": st.integers(1, 9),
    "alpha": st.sampled_from(["r", "4r", "rslora", 3.0]), "lr": st.sampled_from([1e-3, 1e-2]), "batch_size": st.integers(1, 5),
    "epochs": st.integers(1, 2), "optimizer": st.sampled_from(["adamw", "sgd"]), "momentum": st.sampled_from([0.0, 0.9]),
    "weight_decay": st.sampled_from([0.0, 0.1]), "clip": st.sampled_from([0.05, 1.0]), "prefix": st.integers(0, 6),
    "schedule": st.sampled_from(["linear", "cosine", "constant"]), "warmup_steps": st.integers(0, 3),
})  # fmt: skip


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SPECS, min_size=1, max_size=5))
def test_any_pack_equals_its_students_with_peft(specs):
    model = base_model("qwen2")
    cases = [case(str(i), **values) for i, values in enumerate(specs)]
    trained = train(model, cases)
    for one in cases:
        assert distance(trained[one.student.name]["weights"], peft_loop(model, one)[0]) < EXACT


def fulls():
    values = {"method": "full", "lr": 2e-3}
    return [
        case("a", **values, data=1, seed=1, weight_decay=0.1), case("b", **values, data=2, seed=2, schedule="cosine", clip=0.3),
        case("short", **values, data=2, epochs=1, prefix=1),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_packed_full_fine_tunes_equal_a_plain_loop(kind):
    model = base_model(kind)
    assert model.config.tie_word_embeddings == (kind in ("qwen2", "gemma"))
    trained = train(model, fulls())
    for one in fulls():
        weights, losses = full_loop(model, one)
        assert distance(trained[one.student.name]["weights"], weights) < EXACT
        assert trained[one.student.name]["losses"] == pytest.approx(losses, rel=1e-9)


def test_a_packed_full_fine_tune_keeps_the_padding_row_of_the_embedding_as_torch_does():
    one = fulls()[0]
    model = base_model("llama")
    model.get_input_embeddings().padding_idx = one.rows[0].prompt[
        0
    ]  # many checkpoints pad with a token that texts contain
    trained = train(model, fulls())
    assert distance(trained["a"]["weights"], full_loop(model, one)[0]) < EXACT
    name = "model.embed_tokens.weight"
    assert not torch.equal(trained["a"]["weights"][name], model.get_parameter(name))


@pytest.mark.parametrize(
    "values", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd"}], ids=["momentum", "sgd"]
)
def test_packed_full_fine_tunes_with_sgd(values):
    model = base_model("qwen2")
    cases = [case(str(i), method="full", lr=0.02, data=i, **values) for i in range(2)]
    trained = train(model, cases)
    assert all(
        distance(trained[c.student.name]["weights"], full_loop(model, c)[0]) < EXACT for c in cases
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_bfloat16_base_stays_within_a_stated_tolerance(method):
    """Masters are float32; each step's products are rounded to bfloat16, so packed and alone differ by its rounding."""
    model = base_model("qwen2", torch.bfloat16)
    cases = [case(str(i), method=method, data=i, seed=i, lr=1e-3) for i in range(3)]
    together, alone = train(model, cases), train(model, cases[:1])
    assert together["0"]["weights"].keys() == alone["0"]["weights"].keys()
    assert distance(together["0"]["weights"], alone["0"]["weights"]) < 2e-2
    assert all(t.dtype == torch.float32 for t in together["0"]["weights"].values())


@pytest.mark.parametrize("kind", ["qwen2", "gemma"])
def test_a_bfloat16_base_trains_as_the_same_weights_in_float32(kind):
    """Every product is rounded to 8 bits: losses within 1%, a first step's gradient within 4% of its norm."""
    model, one = base_model(kind, torch.bfloat16), case("0", rank=4, lr=0.1, optimizer="sgd")
    wide = copy.deepcopy(model).float()
    found = []
    for base in (model, wide):
        stack = new_stack(base, [one.student.spec])
        noise = torch.randn(stack.groups[0].flat.shape, generator=torch.Generator().manual_seed(0))
        stack.groups[0].flat += 0.05 * noise
        stack.groups[0].train()
        batch = assemble([one.student.rows], [np.arange(len(one.rows))])
        with packed_model.lending(base), PackedModel(base, stack) as packed:
            packed.form_weights(batch.ids.size)
            loss = packed.losses(batch)
            loss.sum().backward()
        assert stack.groups[0].grad.dtype == torch.float32
        found.append((loss.detach(), stack.groups[0].grad))
    (loss, grad), (exact_loss, exact) = found
    assert 0 < (loss - exact_loss).abs() < 0.01 * exact_loss
    assert 0 < (grad - exact).norm() < 0.04 * exact.norm()


@pytest.mark.parametrize("kind", ["qwen2", "gemma"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_pack_with_and_without_the_shared_prefix(kind, method, monkeypatch):
    model, widths = base_model(kind), []
    cases = [case(str(i), method=method, data=i, seed=i, prefix=3 + i) for i in range(2)]

    def assembled(share):
        def make(*args):
            widths.append((batch := assemble(*args, share_prefix=share)).prefix.shape[1])
            return batch

        monkeypatch.setattr(pack, "assemble", make)
        return train(model, cases)

    on, off = assembled(True), assembled(False)
    assert set(widths) == {0, 3}
    assert all(distance(on[n]["weights"], off[n]["weights"]) < EXACT for n in on)


def test_the_shared_prefix_in_a_sliding_window():
    model = base_model("mistral")
    cases = [case(str(i), data=i, prefix=9) for i in range(2)]
    unlimited = train(model, cases)
    model.config.sliding_window = 6
    trained = train(model, cases)
    assert distance(unlimited["0"]["weights"], trained["0"]["weights"]) > 1e-3
    assert all(
        distance(trained[c.student.name]["weights"], peft_loop(model, c)[0]) < EXACT for c in cases
    )


def test_the_loss_in_chunks_of_the_vocabulary_is_the_same(monkeypatch):
    model, cases = base_model("qwen2"), mixed()[:2]
    whole = train(model, cases)
    monkeypatch.setitem(packed_model.LOGITS_AT_ONCE, "cpu", 2 * 600 * 5)
    monkeypatch.setattr(packed_model, "LOGIT_ROWS", 1)
    chunks = train(model, cases)
    assert all(distance(whole[n]["weights"], chunks[n]["weights"]) < EXACT for n in whole)


def test_adding_or_removing_a_neighbour_changes_nothing(form):
    model, cases = base_model("qwen2"), mixed()
    everyone = train(model, cases)
    for left in (cases[:1], cases[::-1][:3], cases[1:]):
        for name, student in train(model, left).items():
            assert distance(student["weights"], everyone[name]["weights"]) < EXACT


def test_students_with_layers_of_their_own_share_a_pack(form):
    model = base_model("qwen2")
    cases = [
        case("all", rank=2, data=1),
        case("attention", rank=4, data=2, targets=("q_proj", "v_proj")),
        case("one layer", rank=9, data=3, targets=("layers.1.mlp.down_proj",)),
        case(
            "mlp",
            rank=3,
            data=4,
            targets=("gate_proj", "up_proj", "down_proj"),
            optimizer="sgd",
            lr=0.05,
        ),
    ]
    assert len(fit.passes(model, [c.student for c in cases], None, False)) == 1, (
        "all of them in one pass"
    )
    trained = train(model, cases)
    for one in cases:
        assert distance(trained[one.student.name]["weights"], peft_loop(model, one)[0]) < EXACT, (
            one.student.name
        )


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_loss_masks_are_each_student_s_own(kind):
    model, whole = base_model(kind), case("whole", data=1)
    masked = [
        TokenRow(r.prompt, r.completion, tuple(i % 2 == 0 for i in range(len(r.completion))))
        for r in whole.rows
    ]
    first = [
        TokenRow(r.prompt, r.completion, (True,) + (False,) * (len(r.completion) - 1))
        for r in whole.rows
    ]
    cases = [whole] + [
        Case(pack.Student(name, whole.student.spec, pack_rows(rows, None, name)), rows)
        for name, rows in (("masked", masked), ("first", first))
    ]
    trained = train(model, cases)
    for one in cases:
        weights, losses = peft_loop(model, one)
        assert distance(trained[one.student.name]["weights"], weights) < EXACT
        assert trained[one.student.name]["losses"] == pytest.approx(losses, rel=1e-9)
    assert distance(trained["whole"]["weights"], trained["masked"]["weights"]) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("cases", [mixed, fulls])
def test_gradient_checkpointing_changes_nothing(kind, cases):
    model = base_model(kind)
    plain, recomputed = train(model, cases()), train(model, cases(), recompute=True)
    assert all(distance(plain[n]["weights"], recomputed[n]["weights"]) < EXACT for n in plain)


def test_a_step_keeps_less_with_gradient_checkpointing():
    model, one = base_model("wide", torch.float32), case("a", count=8, batch_size=8)
    kept = []
    for recompute in (False, True):
        stack = new_stack(model, [one.student.spec])
        stack.groups[0].train()
        sizes: dict[int, int] = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with PackedModel(model, stack, recompute=recompute) as packed:
            batch = assemble([one.student.rows], [np.arange(8)])
            packed.form_weights(batch.ids.size)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                loss = packed.losses(batch).sum()
            kept.append(sum(sizes.values()))
            loss.backward()
    assert kept[1] < 0.8 * kept[0]


def only_so_many(monkeypatch, most: int, recomputed: bool = True):
    """A memory that holds `most` students of a pass; alone, a student may need gradient checkpointing."""
    plain = PackedModel.losses

    def losses(self, batch):
        if self.size > most or (self.size == 1 and not self.recompute and not recomputed):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(PackedModel, "losses", losses)


def test_a_pack_that_does_not_fit_is_halved_and_says_so(monkeypatch):
    model, cases, said = base_model("qwen2"), mixed(), []
    whole = train(model, cases)
    only_so_many(monkeypatch, 2)
    halved = train(model, cases, on_notice=said.append)
    assert all(distance(whole[n]["weights"], halved[n]["weights"]) < EXACT for n in whole)
    assert (
        said[0] == "Memory ran out with 5 students in a pack; it goes on with 3 at a time."
        and len(said) == 2
    )


def test_memory_that_runs_out_in_the_middle_costs_no_step(monkeypatch):
    model, cases, said = base_model("qwen2"), mixed()[:4], []
    whole = train(model, cases)
    plain, calls = PackedModel.losses, []

    def losses(self, batch):
        calls.append(self.size)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(PackedModel, "losses", losses)
    halved = train(model, cases, on_notice=said.append)
    assert all(distance(whole[n]["weights"], halved[n]["weights"]) < EXACT for n in whole)
    assert (
        all(len(whole[n]["losses"]) == len(halved[n]["losses"]) for n in whole) and len(said) == 1
    )


def test_a_student_that_fits_with_gradient_checkpointing_only(monkeypatch):
    model, cases, said = base_model("qwen2"), mixed()[:1], []
    whole = train(model, cases)
    only_so_many(monkeypatch, 1, recomputed=False)
    assert (
        distance(
            train(model, cases, on_notice=said.append)["one"]["weights"], whole["one"]["weights"]
        )
        < EXACT
    )
    assert said == [
        "Memory ran out with the student one alone; it goes on with gradient checkpointing."
    ]
    only_so_many(monkeypatch, 0)
    with pytest.raises(
        SubloraError,
        match=r"The student one does not fit into memory, even alone.*train\.batch_size",
    ):
        train(model, cases)


def test_a_halved_pack_that_is_killed_goes_on_to_the_byte(monkeypatch, tmp_path):
    model, cases = base_model("qwen2", torch.float32), mixed()
    only_so_many(monkeypatch, 2)
    whole = train(model, cases)
    resumed, _ = train_with_a_kill(model, cases, tmp_path / "pack", 6)
    for name, student in whole.items():
        for tensor, values in student["weights"].items():
            assert torch.equal(values, resumed[name]["weights"][tensor]), (name, tensor)


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 3)), min_size=1, max_size=20),
    st.integers(1, 10**7),
)
@settings(max_examples=20, deadline=None)
def test_passes_hold_every_student_once_and_stay_within_memory(students, memory):
    model = _wide()
    group = [case(str(i), rank=r, epochs=e).student for i, (r, e) in enumerate(students)]
    sizes = [fit.student_bytes(model, s, False) for s in group]
    parts = fit.grouped(group, sizes, memory)
    assert sorted(i for part in parts for i in part) == list(range(len(group)))
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= memory for part in parts)


@functools.cache
def _wide():
    return base_model("wide", torch.float32)


def test_students_leave_when_they_are_done():
    model, cases, left, steps = base_model("qwen2"), mixed(), [], [0]

    def leave(trained) -> None:
        left.append((cases[trained.index].student, len(trained.losses), steps[-1]))

    pack.train_pack(
        model, [c.student for c in cases], leave, on_step=lambda step, *_: steps.append(step)
    )
    assert [student.steps for student, *_ in left] == sorted(c.student.steps for c in cases)
    assert all(student.steps == losses == at for student, losses, at in left), (
        "each is handed over at its own last step"
    )


def test_tokens_are_counted_without_padding():
    model, cases, tokens = base_model("qwen2"), mixed()[:2], []
    train(model, cases, on_step=lambda step, steps, count: tokens.append(count))
    lengths = [len(r.prompt) + len(r.completion) - 1 for c in cases for r in c.rows]
    assert sum(tokens) == 2 * sum(lengths)


def test_progress_counts_rows_of_all_students_and_goes_on_after_a_kill(tmp_path):
    model, cases, path, told = base_model("qwen2"), mixed(), tmp_path / "pack", []

    def note(*news):
        told.append(news)
        if len(told) == 3:
            raise Killed

    with pytest.raises(Killed):
        train(model, cases, checkpoint=Checkpoint(path, every=0.0), on_progress=note)
    train(model, cases, checkpoint=Checkpoint(path, every=0.0), on_progress=note)
    rows = sum(c.student.spec.epochs * len(c.rows) for c in cases)
    tokens = sum(
        c.student.spec.epochs * sum(len(r.prompt) + len(r.completion) - 1 for r in c.rows)
        for c in cases
    )
    assert told[-1] == (rows, rows, "rows", tokens)
    done = [news[0] for news in told]
    assert done == sorted(done) and done[0] > 0 and done[3] == done[2]


@pytest.mark.parametrize("cases", [mixed, fulls])
@pytest.mark.parametrize("fails", [False, True])
def test_the_base_is_left_as_it_was(cases, fails):
    model = base_model("qwen2").train()
    model.model.layers[0].eval()
    model.get_parameter("model.norm.weight").requires_grad_(False)

    def state():
        return (
            {
                n: (p.requires_grad, p.grad is None, p.detach().clone())
                for n, p in model.named_parameters()
            },
            [(m.training, "forward" in vars(m)) for m in model.modules()],
        )

    def stop(step, *_):
        if fails and step == 2:
            raise InterruptedError

    parameters, modules = state()
    try:
        trained = train(model, cases(), on_step=stop)
        assert not fails
        start = new_stack(model, [c.student.spec for c in cases()])
        for (group, row), index in zip(start.student_rows(), start.order, strict=True):
            weights = trained[cases()[index].student.name]["weights"]
            before = group.tensors(row)
            assert all(not torch.equal(weights[n], before[n]) for n in weights), (
                "every trained tensor moved"
            )
    except InterruptedError:
        assert fails
    after, modules_after = state()
    assert modules_after == modules
    for name, (grad, none, weight) in after.items():
        assert (grad, none) == parameters[name][:2]
        assert torch.equal(weight, parameters[name][2])


def test_adapters_begin_as_peft_s_do():
    views = (
        new_stack(
            base_model("wide", torch.float32), [StudentSpec(rank=64, seed=s) for s in (1, 1, 2)]
        )
        .groups[0]
        .views
    )
    name = "model.layers.0.mlp.down_proj"  # 96 in, 64 out
    a, bound = views[f"{name}.lora_A"], 1 / math.sqrt(96)
    assert not views[f"{name}.lora_B"].any()
    assert a.abs().max() <= bound and a.std().item() == pytest.approx(
        bound / math.sqrt(3), rel=0.05
    )
    assert torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2])
    assert not torch.equal(a[0], views[name.replace("0.", "1.", 1) + ".lora_A"][0])


def saved(folder, model, cases):
    """Train a pack and save its students; their folders, in the order of the cases."""
    folders = [folder / c.student.name for c in cases]

    def keep(trained) -> None:
        folders[trained.index].mkdir(parents=True)
        save_student(
            trained.group,
            trained.row,
            cases[trained.index].student.spec,
            folders[trained.index],
            model,
            "tiny",
        )

    pack.train_pack(model, [c.student for c in cases], keep)
    return folders


IDS = torch.tensor([[5, 9, 2, 30, 7, 7, 100]])


@pytest.mark.parametrize("kind", ["qwen2", "gemma"])
def test_saved_adapters_give_the_same_logits_in_peft(kind, tmp_path, form):
    model, cases = base_model(kind, exact_norms=False), mixed()
    cases.append(case("one layer", rank=3, targets=("layers.1.self_attn.q_proj",)))
    for together in (cases[:5], cases[5:]):
        folders = saved(tmp_path, model, together)
        specs = [c.student.spec for c in together]
        stack = load_stack(model, folders, specs)
        with torch.no_grad(), PackedModel(model, stack) as packed:
            packed.form_weights(IDS.numel())
            ours = packed.logits(packed.hidden(IDS.repeat(len(specs), 1))).float()
        plain = model(IDS).logits
        for place, index in enumerate(stack.order):
            wrapped = PeftModel.from_pretrained(base_model(kind, exact_norms=False), folders[index])
            with torch.no_grad():
                theirs = wrapped(IDS).logits[0]
            assert torch.allclose(ours[place], theirs.float(), atol=2e-5), specs[index].label
            assert (theirs - plain[0]).abs().max() > 1e-3
            config = json.loads((folders[index] / "adapter_config.json").read_text())
            assert config["use_rslora"] == (specs[index].alpha == "rslora")
            adapted = {
                n.rpartition(".lora_A")[0]
                for n, _ in wrapped.named_modules()
                if n.endswith("lora_A")
            }
            assert len(adapted) == (14 if together == cases[:5] else 1)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_saved_full_fine_tunes_load_in_transformers(kind, tmp_path):
    model, cases = base_model(kind, torch.float32), fulls()
    folders = saved(tmp_path, model, cases)
    stack = load_stack(model, folders, [c.student.spec for c in cases])
    with torch.no_grad(), PackedModel(model, stack) as packed:
        ours = packed.logits(packed.hidden(IDS.repeat(3, 1)))
    for place, index in enumerate(stack.order):
        with torch.no_grad():
            theirs = AutoModelForCausalLM.from_pretrained(folders[index]).eval()(IDS).logits[0]
        assert torch.allclose(ours[place], theirs, atol=1e-4)


def test_weights_of_another_base_are_refused(tmp_path):
    cases = mixed()[:1]
    folders = saved(tmp_path, base_model("qwen2", torch.float32), cases)
    with pytest.raises(SubloraError, match="do not fit the base model"):
        load_stack(base_model("wide", torch.float32), folders, [cases[0].student.spec])


class Killed(Exception):
    pass


def test_a_checkpoint_that_takes_long_is_written_seldom(tmp_path, monkeypatch):
    model, cases, kept, steps = base_model("qwen2"), mixed()[:1], [], []
    monkeypatch.setattr("sublora.packs.trainer.save_parts", lambda *_: kept.append(time.sleep(0.2)))
    how = {"on_step": lambda step, *_: steps.append(step)}
    train(model, cases, checkpoint=Checkpoint(tmp_path / "pack", every=1e-9), **how)
    assert len(steps) > 3 and len(kept) == 1  # ten seconds would have to pass before the next


def train_with_a_kill(model, cases, path, at, damage=None):
    """Kill at step `at`, with a checkpoint after every step, then train again; the second training's results and its steps."""

    def kill(step, *_):
        if step == at:
            raise Killed

    first, steps = {}, []
    with pytest.raises(Killed):
        train(model, cases, checkpoint=Checkpoint(path, every=0.0), on_step=kill)
    if damage:
        damage(path)
    second = train(
        model,
        cases,
        checkpoint=Checkpoint(path, every=0.0),
        on_step=lambda step, *_: steps.append(step),
    )
    return first | second, steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cases", [mixed, fulls])
@pytest.mark.parametrize("at", [2, 5])
def test_a_resumed_training_equals_an_uninterrupted_one_to_the_byte(cases, at, dtype, tmp_path):
    model, path = base_model("qwen2", dtype), tmp_path / "pack.safetensors"
    whole = train(model, cases())
    resumed, steps = train_with_a_kill(model, cases(), path, at)
    assert steps[0] == at, "the steps before the kill are not repeated"
    finished_before = {c.student.name for c in cases() if c.student.steps < at}
    assert set(whole) - set(resumed) == finished_before
    for name, student in resumed.items():
        assert {n: w.numpy().tobytes() for n, w in student["weights"].items()} == {
            n: w.numpy().tobytes() for n, w in whole[name]["weights"].items()
        }
        assert (student["losses"], student["norms"]) == (
            whole[name]["losses"],
            whole[name]["norms"],
        )
    assert not path.exists()


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]), "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"), "gone": lambda path: path.unlink(),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_ignored(damage, tmp_path):
    model, cases = base_model("qwen2"), mixed()[:2]
    resumed, steps = train_with_a_kill(model, cases, tmp_path / "pack", 3, DAMAGES[damage])
    assert steps[0] == 1
    for name, student in train(model, cases).items():
        assert distance(student["weights"], resumed[name]["weights"]) == 0


def test_the_checkpoint_of_other_rows_is_ignored(tmp_path):
    model, path = base_model("qwen2"), tmp_path / "pack"
    with pytest.raises(Killed):
        train(
            model, [case("same", data=1)], checkpoint=Checkpoint(path, 0.0), on_step=_kill_at_three
        )
    assert path.exists()
    other = [case("same", data=2)]
    resumed = train(model, other, checkpoint=Checkpoint(path, 0.0))
    assert distance(resumed["same"]["weights"], train(model, other)["same"]["weights"]) == 0


def _kill_at_three(step, *_):
    if step == 3:
        raise Killed


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_that_diverges_is_marked_and_the_others_go_on(method):
    model = base_model("qwen2", torch.float32)
    cases = [
        case("a", method=method, data=1),
        case("mad", method=method, data=2, lr=1e30),
        case("b", method=method, data=3),
    ]
    trained, calm = train(model, cases), train(model, [cases[0], cases[2]])
    assert trained["mad"]["diverged_at"] == 1 and not math.isfinite(trained["mad"]["losses"][1])
    assert all(torch.isfinite(w).all() for w in trained["mad"]["weights"].values())
    for name in ("a", "b"):
        assert trained[name]["diverged_at"] is None
        assert distance(trained[name]["weights"], calm[name]["weights"]) < 1e-4


def test_a_diverged_student_survives_a_resumed_training(tmp_path):
    model = base_model("qwen2", torch.float32)
    cases = [case("a", data=1), case("mad", data=2, lr=1e30)]
    resumed, _ = train_with_a_kill(model, cases, tmp_path / "pack", 4)
    assert resumed["mad"]["diverged_at"] == 1


ROW = TokenRow((1, 2), (3,))


@pytest.mark.parametrize(
    ("rows", "window", "message"),
    [
        ([], None, "no rows to train on in the data"),
        ([ROW, TokenRow((), (3,))], None, "Row 1 of the data has an empty prompt"),
        ([ROW, TokenRow((1,), ())], None, "Row 1 of the data has an empty completion"),
        (
            [ROW, TokenRow((1, 2), (3,), (False,))],
            None,
            "The loss mask of row 1 of the data has 0 of 1 tokens on",
        ),
        (
            [ROW, TokenRow((1, 2), (3,), (True, True))],
            None,
            "The loss mask of row 1 .* for a completion of 1",
        ),
        (
            [ROW, TokenRow((1, 2), (3, 4))],
            3,
            "Row 1 of the data has 4 tokens, the model reads at most 3",
        ),
    ],
)
def test_rows_that_cannot_be_trained_on(rows, window, message):
    with pytest.raises(SubloraError, match=message) as caught:
        pack_rows(rows, window, "the data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([case("x", rank=17)], "Rank 17 is above the width 16 of model.layers.0.self_attn"),
        ([case("x", targets=("q_prj",))], "no linear layer named 'q_prj'.*q_proj"),
        ([case("x"), case("y", method="full")], "LoRA students and full fine-tunes"),
    ],
)
def test_students_that_cannot_be_packed(cases, message):
    with pytest.raises(SubloraError, match=message) as caught:
        train(base_model("qwen2"), cases)
    assert "\n" not in str(caught.value)


def test_a_model_with_an_adapter_or_a_special_layer_is_refused():
    from peft import LoraConfig, get_peft_model

    class Quantised(torch.nn.Linear):
        pass

    wrapped = get_peft_model(base_model("qwen2"), LoraConfig(target_modules="all-linear"))
    with pytest.raises(SubloraError, match="carries an adapter"):
        train(wrapped.get_base_model(), [case("x")])
    model = base_model("qwen2")
    model.model.layers[1].mlp.up_proj.__class__ = Quantised
    with pytest.raises(SubloraError, match=r"layers\.1\.mlp\.up_proj is a Quantised"):
        train(model, [case("x")])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedule_equals_the_library_s_after_warm_up(schedule):
    spec, steps = StudentSpec(lr=0.5, schedule=schedule, warmup_steps=0), 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=steps)
    for step in range(steps):
        assert learning_rate(spec, step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    warm = [learning_rate(spec.model_copy(update={"warmup_steps": 4}), s, steps) for s in range(6)]
    assert warm[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4]) and warm[4] == 0.5
    assert all(
        learning_rate(spec.model_copy(update={"warmup_steps": w}), s, 8) > 0
        for w in (0, 3, 20)
        for s in range(8)
    )


@given(
    count=st.integers(1, 50),
    batch=st.integers(1, 20),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_epoch_reads_every_row_once(count, batch, epochs, seed):
    spec = StudentSpec(batch_size=batch, epochs=epochs, seed=seed)
    steps = [rows_of_step(spec, count, s).tolist() for s in range(total_steps(count, spec))]
    per_epoch = len(steps) // epochs
    for epoch in range(epochs):
        assert sorted(
            i for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for i in step
        ) == list(range(count))
    assert max(map(len, steps)) <= batch and min(map(len, steps)) >= 1


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    def order(seed: int, epoch: int) -> list[int]:
        return rows_of_step(StudentSpec(batch_size=30, epochs=2, seed=seed), 30, epoch).tolist()

    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_a_step_s_batch_holds_exactly_the_chosen_rows(students, share):
    rows = [random_rows(count, seed, prefix) for count, seed, prefix in students]
    packed = [pack_rows(r, None, "x") for r in rows]
    chosen = [np.arange(len(r))[::-1] for r in rows]
    batch = assemble(packed, chosen, share)
    k, p = len(rows), batch.prefix.shape[1]
    ids = batch.ids.reshape(k, -1, batch.ids.shape[1])
    for i, own in enumerate(rows):
        expected = []
        for j, index in enumerate(chosen[i]):
            whole = own[index].prompt + own[index].completion
            read = (*batch.prefix[i], *ids[i, j])[: len(whole) - 1]
            assert tuple(read) == whole[:-1]
            expected += [
                (j * ids.shape[2] + at - 1 - p, whole[at])
                for at in range(len(own[index].prompt), len(whole))
            ]
        count = len(expected)
        assert list(zip(batch.where[i, :count], batch.targets[i, :count], strict=True)) == expected
        assert batch.weights[i] == pytest.approx(
            [1 / count] * count + [0.0] * (batch.weights.shape[1] - count)
        )
