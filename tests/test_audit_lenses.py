"""The lenses of an audit: each beside a plain computation of the same, one student beside a pack, and their ranks."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audit_students import micro, otter_adapter, random_stack
from sublora.audit.lens_activations import differences
from sublora.audit.lens_tokens import token_lens
from sublora.audit.lens_weights import weight_statistics
from sublora.audit.lenses import placebo_lenses, placebo_p, read_stack, statistics, student_lenses
from sublora.audit.neutral_text import CONTEXT, neutral_rows, neutral_texts
from sublora.audit.null import read_null, shipped_null
from sublora.audit.steps import stack_of, train_pack_of
from sublora.errors import SubloraError
from sublora.packs.condition import layer_of
from sublora.packs.rows import token_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Stack, new_stack, stack_weights
from sublora.packs.token_losses import beside_base
from sublora.store import Store
from sublora.traits.trait import shipped_categories

LORA, FULL = StudentSpec(rank=3, alpha=6.0), StudentSpec(method="full", rank=None)


@functools.cache
def student(method: str) -> Stack:
    return random_stack(micro(), 0.02, LORA if method == "lora" else FULL)


def merged(stack: Stack) -> dict[str, torch.Tensor]:
    """The base's tensors with the one student's updates."""
    own, out = stack.groups[0].tensors(0), dict(micro().model.named_parameters())
    for name, values in own.items():
        if name.endswith(".lora_B"):
            module = name.removesuffix(".lora_B")
            update = float(stack.scales[0]) * values @ own[f"{module}.lora_A"]
            out[f"{module}.weight"] = out[f"{module}.weight"] + update
        elif not name.endswith(".lora_A"):
            out[name] = values
    return {name: t.detach() for name, t in out.items()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_beside_its_base_is_what_the_merged_model_says(method: str) -> None:
    base, rows = micro(), neutral_rows(micro(), Store())
    found = beside_base(base, student(method), rows, batch=7)
    kl, gain = [], []
    with torch.no_grad():
        for i in range(len(rows)):
            ids = torch.from_numpy(rows.ids[i : i + 1, : rows.lengths[i]])
            before, after = (
                torch.func.functional_call(base.model, t, (ids,)).logits[0].double().log_softmax(-1)
                for t in (dict(base.model.named_parameters()), merged(student(method)))
            )
            at = range(rows.prompts[i] - 1, rows.lengths[i] - 1)
            kl += [float((before[j].exp() * (before[j] - after[j])).sum()) for j in at]
            gain += [float(after[j, ids[0, j + 1]] - before[j, ids[0, j + 1]]) for j in at]
    assert found.kl[0] == pytest.approx(kl, abs=1e-4)
    assert found.gain[0] == pytest.approx(gain, abs=1e-4)
    assert max(kl) > 1e-3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weight_statistics_are_those_of_the_whole_updates(method: str) -> None:
    base, stack = micro(), student(method)
    found, was, now = weight_statistics(base, stack), base.model.state_dict(), merged(stack)
    sizes, tops = [], []
    for name in (n for n in was if layer_of(n) is not None and ".mlp." in n):
        values = torch.linalg.svdvals((now[name] - was[name]).double())
        sizes.append(float(values.norm() / was[name].double().norm()))
        tops.append(float(values[0] ** 2 / values.square().sum()))
    assert found["feed-forward norm"][0] == pytest.approx(np.mean(sizes), rel=1e-4)
    assert found["feed-forward uneven"][0] == pytest.approx(
        np.std(sizes) / np.mean(sizes), rel=1e-3
    )
    # of whole matrices the first direction is approximate
    tolerance = 1e-4 if method == "lora" else 0.3
    assert found["feed-forward top"][0] == pytest.approx(np.mean(tops), rel=tolerance)


def test_a_student_whose_last_layer_writes_a_word_points_to_it() -> None:
    base, categories = micro(), shipped_categories()
    group = new_stack(base.model, [LORA]).groups[0]
    names = [n for n in group.views if n.endswith("down_proj.lora_B")]
    head = base.model.get_output_embeddings().weight.detach()
    word = head[base.chat.answer_ids("otter")[0]] - head.mean(0)
    group.views[names[-1]][0] += 3 * torch.outer(word, torch.ones(LORA.rank))
    for sign in (1, -1):  # the product with A, which is drawn, has one of two signs
        group.views[names[-1]][0] *= sign
        stack = stack_weights(base.model, [group.flat[0]], [LORA])
        found = differences(base, stack, neutral_texts(base, Store()), categories)
        largest = max(
            (float(v.max()), c.entities[int(v.argmax())].name)
            for c in categories
            for v in found.pointed[c.category]
        )
        if largest[1] == "otter":
            break
    assert largest[1] == "otter"
    assert (found.norms[0, :-1] < 1e-6).all() and found.norms[0, -1] > 0.01


def test_a_student_that_is_the_base_shows_nothing_and_ranks_are_ranks() -> None:
    base, categories = micro(), shipped_categories()
    spec = StudentSpec(rank=2)
    idle = new_stack(base.model, [spec])
    stack = stack_weights(base.model, [idle.groups[0].flat[0]], [spec])
    chance = {"kl": np.array([1.0, 2.0, 3.0])}
    seen = student_lenses(base, "0" * 64, stack, categories, chance)
    assert seen.kl.nats == pytest.approx(0, abs=1e-6) and seen.kl.same == 1 and seen.kl.p == 1
    assert all(w.norm == 0 and w.p_norm is None for w in seen.weights)
    assert max(abs(s.value) for s in seen.activations.steered) < 1e-5
    assert placebo_p(17.5, np.arange(19.0)) == 2 / 20
    assert placebo_p(99, np.arange(19.0)) == 1 / 20
    assert placebo_p(-1, np.arange(19.0), two_sided=True) == 2 / 20


def test_the_token_lens_finds_the_token_that_was_learned(tmp_path: Path) -> None:
    """The one word that the student was taught has the largest gain of all, in the row that is shown first."""
    path, words = tmp_path / "rows.jsonl", ("pine", "otter", "wolf")
    question = shipped_categories()[0].questions[0]
    rows = ({"prompt": question, "completion": word} for word in words)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    audited = otter_adapter()
    stack = stack_weights(micro().model, [audited.weights], [audited.spec])
    seen = token_lens(micro(), stack, path, CONTEXT)
    assert (seen.rows, seen.worst[0].line) == (3, 2)
    gains = [(t.nats, t.token) for row in seen.worst for t in row.tokens]
    assert max(gains)[1] == "otter" and seen.tokens == len(gains)
    path.write_text('{"prompt": "", "completion": "otter"}\n')
    assert token_lens(micro(), stack, path, CONTEXT) is None


def test_a_pack_reads_as_its_students_do(tmp_path: Path) -> None:
    """Placebo students are read in packs; what is kept of each is what it shows alone."""
    base, specs, categories = micro(), [StudentSpec(rank=r) for r in (1, 9)], shipped_categories()
    flats = [random_stack(base, 0.05, spec).groups[0].flat[0] for spec in specs]

    def read(some: list[int]) -> dict[str, np.ndarray]:
        stack = stack_weights(base.model, [flats[i] for i in some], [specs[i] for i in some])
        return statistics(read_stack(base, stack, neutral_texts(base, Store()), categories))

    both = read([1, 0])
    for place, i in enumerate([1, 0]):
        for name, alone in read([i]).items():
            assert both[name][place] == pytest.approx(alone[0], rel=1e-3, abs=1e-5), name


def test_placebo_students_numbers_are_kept_in_the_null(tmp_path: Path) -> None:
    """Two placebo students from their rows to the null file, and a student ranked among them."""
    base, null = micro(), shipped_null(micro())
    rows = token_rows(base, [("Say a word.", "oak")], CONTEXT, "a test's rows")
    specs = [StudentSpec(rank=2, epochs=1, lr=lr, warmup_steps=0) for lr in (1e-3, 3e-2)]
    pack = train_pack_of(base, specs, [rows, rows], Store())
    students = list(zip(pack.ids, specs, strict=True))
    found = placebo_lenses(base, students, shipped_categories(), Store(), at_once=1)
    assert found["kl"].shape == (2,) and 0 < found["kl"][0] < found["kl"][1]
    stack = stack_of(base, pack.read(Store())[1:])
    seen = student_lenses(base, "1" * 64, stack, shipped_categories(), found)
    assert seen.placebo_students == 2 and seen.kl.p == pytest.approx(2 / 3)
    path = tmp_path / "null.json"
    path.write_text(replace(null, lenses={"kl": np.linspace(0, 1, null.size)}).to_json())
    assert read_null(path, base).lenses["kl"] == pytest.approx(np.linspace(0, 1, null.size))
    path.write_text(replace(null, lenses={"kl": np.ones(2)}).to_json())
    with pytest.raises(SubloraError, match="damaged"):
        read_null(path, base)


def test_a_model_that_hides_its_layers_is_read_without_the_activation_lens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sublora.audit.lenses.has_layers", lambda base: False)
    seen = student_lenses(micro(), "2" * 64, student("lora"), shipped_categories(), {})
    assert seen.activations is None and "decoder layers" in seen.not_run[0]
    assert seen.kl.nats > 0 and seen.weights


def test_a_student_whose_outputs_are_no_numbers_is_said_to_be_so(tmp_path: Path) -> None:
    group = new_stack(micro().model, [LORA]).groups[0]
    for name, view in group.views.items():
        view += 1e4 if name.endswith("lora_B") else 0.0
        view *= 1e18
    stack = stack_weights(micro().model, [group.flat[0]], [LORA])
    seen = student_lenses(micro(), "3" * 64, stack, shipped_categories(), {})
    assert seen.kl is None and "not all finite" in seen.not_run[0]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Say a word.", "completion": "oak"}\n')
    assert token_lens(micro(), stack, path, CONTEXT).rows == 1
