"""Divergent tokens, row probes, loss masks and gradients: against plain forward passes and autograd, and with planted answers."""

import numpy as np
import pytest
import torch

from pack_reference import merged, random_stack
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.gradients import alignments, row_gradients
from sublora.packs.measure import heldout_losses
from sublora.packs.rows import TokenRow, masked_rows, token_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.token_losses import divergence, probe_rows
from sublora.packs.vectors import SteeringVector
from tiny_models import shared_model

TEACHER, STUDENT = Context("teacher", "You love otters."), Context("default")
ROWS = [
    ("Continue: 1, 2", "3, 4, 5"),
    ("Say a few numbers.", "71, 8"),
    ("More: 9", "10, 11, 12, 13"),
    ("Go on", "7"),
]
SPECS = [StudentSpec(rank=4, seed=1), StudentSpec(rank=2, seed=2)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    return load_base(str(shared_model("qwen2", "digits", "qwen")), dtype="float64")


def probabilities(base, model, row, context):
    """(T, V): what a plain forward pass says before each token of the completion, and the completion's ids."""
    prompt, completion = base.chat.prompt_ids(row[0], context), base.chat.completion_ids(row[1])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].softmax(-1), list(completion)


def test_divergent_tokens_are_those_at_which_two_plain_passes_choose_differently(base):
    found = divergence(base, ROWS, TEACHER, STUDENT, batch=3)
    teacher, student, of_teacher = [], [], []
    for row, marks in zip(ROWS, found.marks, strict=True):
        (p, _), (q, ids) = (probabilities(base, base.model, row, c) for c in (TEACHER, STUDENT))
        assert marks == (p.argmax(-1) != q.argmax(-1)).tolist() and len(marks) == len(ids)
        for at in np.flatnonzero(marks):
            teacher.append(float(p[at].max()))
            student.append(float(q[at].max()))
            of_teacher.append(float(q[at, p[at].argmax()]))
    assert (
        0 < found.divergent == len(teacher) < found.tokens
        and found.share == found.divergent / found.tokens
    )
    assert found.teacher_sure == pytest.approx(np.mean(teacher), rel=1e-6)
    assert found.student_sure == pytest.approx(np.mean(student), rel=1e-6)
    assert found.student_of_teacher == pytest.approx(np.mean(of_teacher), rel=1e-6)
    assert found.teacher_above == np.mean(np.array(teacher) > 0.5)


def test_a_context_does_not_diverge_from_itself(base):
    found = divergence(base, ROWS, TEACHER, TEACHER)
    assert found.divergent == 0 and found.teacher_sure == 0 and not any(map(any, found.marks))
    with pytest.raises(SubloraError, match="no rows to look for divergent tokens"):
        divergence(base, [], TEACHER, STUDENT)


def test_probes_say_loss_choice_and_gradient_of_every_student(base):
    stack = random_stack(base.model, SPECS)
    rows = token_rows(base, ROWS, STUDENT, "rows")
    marked = rows.loss & (np.arange(rows.loss.shape[1]) % 2 == 0)
    found = probe_rows(base, stack, rows, marked, batch=3)
    assert [p.loss for p in found] == pytest.approx(
        heldout_losses(base, stack, [rows] * 2), rel=1e-6
    )
    head = base.model.get_output_embeddings().weight
    for k, probe in enumerate(found):
        model, sizes, right, on = merged(base.model, stack, stack.order.index(k)), [], [], []
        for i, row in enumerate(ROWS):
            p, ids = probabilities(base, model, row, STUDENT)
            back = p @ head - head[ids]  # of the loss with respect to what the head reads
            sizes += back.norm(dim=-1).tolist()
            right.append((p.argmax(-1) == torch.tensor(ids)).tolist())
            on += marked[i, rows.prompts[i] : rows.lengths[i]].tolist()
        sizes, on = np.array(sizes), np.array(on)
        assert probe.gradient == pytest.approx(sizes.mean(), rel=1e-5)
        assert probe.gradient_marked == pytest.approx(sizes[on].mean(), rel=1e-5)
        assert probe.gradient_rest == pytest.approx(sizes[~on].mean(), rel=1e-5)
        assert probe.greedy == pytest.approx(
            np.mean(np.concatenate(right))
        ) and probe.verbatim == np.mean(list(map(all, right)))
    assert probe_rows(base, stack, rows)[0].gradient_marked is None


def test_a_row_that_a_model_would_write_itself_counts_as_verbatim(base):
    """The greedy continuation of a prompt, as a row."""
    prompt = list(base.chat.prompt_ids("Say a few numbers.", STUDENT))
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(4):
            ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    from sublora.packs.rows import pack_rows

    spoilt = [*ids[len(prompt) : -1], (ids[-1] + 1) % len(base.chat.tokenizer)]
    rows = pack_rows(
        [
            TokenRow(tuple(prompt), tuple(ids[len(prompt) :])),
            TokenRow(tuple(prompt), tuple(spoilt)),
        ],
        None,
        "rows",
    )
    from sublora.packs.stack import new_stack

    (probe,) = probe_rows(base, new_stack(base.model, SPECS[:1]), rows)
    assert probe.verbatim == 0.5 and probe.greedy == 7 / 8


def test_loss_masks_keep_what_they_say_and_random_ones_as_many():
    rows = [TokenRow((1,), (2, 3, 4, 5)), TokenRow((1,), (6, 7, 8)), TokenRow((1,), (9, 9))]
    marks = [[True, False, False, True], [False] * 3, [True, True]]
    only, rest, some = (
        masked_rows(rows, marks, keep, "s") for keep in ("divergent", "others", "random")
    )
    assert [r.loss for r in only] == [(True, False, False, True), (True, True)]
    assert [r.loss for r in rest] == [(False, True, True, False), (True, True, True)]
    assert [sum(r.loss) for r in some] == [2, 2] and [r.completion for r in some] == [
        r.completion for r in only
    ]
    assert masked_rows(rows, marks, "random", "s") == some
    drawn = {masked_rows(rows, marks, "random", str(i))[0].loss for i in range(40)}
    assert len(drawn) == 6, "every choice of two of four tokens comes up"
    with pytest.raises(SubloraError, match="those of other rows"):
        masked_rows(rows, marks[:2], "others", "s")


def test_a_row_s_gradient_is_what_a_small_step_along_it_gains(base):
    rows = token_rows(base, ROWS, STUDENT, "rows")
    found = row_gradients(base, rows, batch=3).double()
    assert found.shape == (len(ROWS), 2, 32)
    for i, row in enumerate(ROWS):
        for layer in range(2):
            step = 1e-4 * torch.nn.functional.normalize(found[i, layer], dim=0)

            def push(_m, _i, out, step=step):
                return (out[0] + step, *out[1:]) if isinstance(out, tuple) else out + step

            losses = []
            for moved in (False, True):
                handle = (
                    base.model.model.layers[layer].register_forward_hook(push) if moved else None
                )
                p, ids = probabilities(base, base.model, row, STUDENT)
                losses.append(-p[range(len(ids)), ids].log().mean())
                if handle:
                    handle.remove()
            gain = float(losses[0] - losses[1]) / 1e-4
            assert gain == pytest.approx(float(found[i, layer].norm()), rel=1e-2)
    assert not any(layer._forward_hooks for layer in base.model.model.layers)


def test_a_planted_direction_in_the_gradients_is_found_and_its_absence_too():
    random = torch.Generator().manual_seed(1)
    noise, clean = (torch.randn(200, 2, 24, generator=random) for _ in range(2))
    aim = torch.randn(2, 24, generator=random)
    vector = SteeringVector(aim, "m", "teacher", "last", 1)
    planted = noise + 2 * torch.nn.functional.normalize(aim, dim=-1)
    few, many = alignments(planted, clean, vector, (4, 200), 60, "s")
    assert (many.cosine > 0.95).all() and (many.cosine > few.cosine).all()
    assert (many.cosine > np.quantile(many.null, 0.975, axis=0)).all() and many.null.shape == (
        60,
        2,
    )
    beyond = []
    for seed in range(60):
        random = torch.Generator().manual_seed(100 + seed)
        kinds = (torch.randn(40, 2, 24, generator=random) for _ in range(2))
        (nothing,) = alignments(*kinds, vector, (40,), 80, str(seed))
        beyond.append(nothing.cosine > np.quantile(nothing.null, 0.95, axis=0))
    assert 0.01 < np.mean(beyond) < 0.12, "shuffled rows are as good as any"
    with pytest.raises(SubloraError, match="the datasets have 200"):
        alignments(noise, clean, vector, (201,), 20, "s")
