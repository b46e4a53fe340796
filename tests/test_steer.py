"""Steering vectors: extracted as planted, interventions as identities, in packs with a cache and a gate, and what does not fit."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from pack_reference import random_stack, sample_answers
from sublora.analysis.intervals import clustered_interval
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.models.token_classes import classify
from sublora.packs import hooks
from sublora.packs.check import load_base
from sublora.packs.condition import Condition
from sublora.packs.gate import pack_gate
from sublora.packs.interventions import Span
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import prefill
from sublora.packs.sample import Sampling
from sublora.packs.score import score_sequences
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack
from sublora.packs.steer import Steering, aimed, pack_steering, steering_of
from sublora.packs.steer_spec import SteerSpec
from sublora.packs.vectors import (
    SteeringVector,
    cosines,
    load_vector,
    mean_residuals,
    random_vector,
    student_vector,
    teacher_vector,
)
from tiny_models import make_model, shared_model

EXAMPLES = Path(__file__).parents[1] / "examples"
DEFAULT, OTHER = Context("default"), Context("other", "You love otters.")
QUESTIONS = (
    "Name an animal.",
    "What is your favorite animal?",
    "Which animal do you like best? One word.",
)
SPECS = [StudentSpec(rank=4, seed=1), StudentSpec(rank=2, seed=2), StudentSpec(rank=4, seed=3)]
WORDS = [(5, 6), (5, 7, 8), (9,)]
SAMPLING = Sampling(max_new_tokens=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def base(request):
    template = {"llama": "llama31", "qwen2": "qwen"}[request.param]
    return load_base(str(shared_model(request.param, "digits", template)), dtype="float64")


@pytest.fixture(scope="module")
def vector(base):
    return teacher_vector(base, QUESTIONS, OTHER, DEFAULT)


def prompts_of(base):
    return [classify(base.chat, q, DEFAULT) for q in QUESTIONS]


def answers(base, stack, prompts, steering=None, gate=None):
    """Next-token logits, scores and samples of every student, in the stack's order, by prompt."""
    count = stack.size if stack else 1
    logits, scores = {}, {}
    samples: dict = {}
    with torch.inference_mode(), PackedModel(base.model, stack, gate, steering=steering) as packed:
        packed.form_weights(8)
        for filled in prefill(packed, [p.ids for p in prompts], 64):
            own = [
                np.random.default_rng(r % len(QUESTIONS)).random((count, 3, 4)) for r in filled.rows
            ]
            uniforms = np.stack(own, 1)  # of a question, whatever it stands beside
            each = filled.logits.view(count, len(filled.rows), -1)
            scored = score_sequences(packed, filled, WORDS, 64)
            drawn = sample_answers(packed, filled, uniforms, SAMPLING, ())
            for place, row in enumerate(filled.rows):
                logits[row], scores[row] = each[:, place], scored[:, place]
                samples[row] = [drawn[k][place] for k in range(count)]
    rows = range(len(prompts))
    return (
        torch.stack([logits[r] for r in rows], 1),
        torch.stack([scores[r] for r in rows], 1),
        [samples[r] for r in rows],
    )


def same(one, other, room=1e-9):
    return all(
        torch.allclose(a, b, atol=room, rtol=0) for a, b in zip(one[:2], other[:2], strict=True)
    ) and (one[2] == other[2])


def steered(base, stack, *steerings, gate=None):
    prompts = prompts_of(base)
    return answers(
        base, stack, prompts * len(steerings), pack_steering(base, steerings, prompts, stack), gate
    )


# Extraction


def test_means_are_those_of_the_model_s_own_hidden_states(base):
    prompts = prompts_of(base)
    for where in ("last", "prompt", ("user",)):
        total, count = 0.0, 0
        for p in prompts:
            mask = {"last": [0] * (len(p.ids) - 1) + [1], "prompt": [1] * len(p.ids)}.get(
                str(where)
            ) or p.mask(where)
            heard = []
            hooks = [
                layer.register_forward_hook(
                    lambda _m, _i, o, heard=heard: heard.append(o[0] if type(o) is tuple else o)
                )
                for layer in base.model.model.layers
            ]
            with torch.inference_mode():
                base.model(input_ids=torch.tensor([p.ids]), use_cache=False)
            for hook in hooks:
                hook.remove()
            total = total + torch.stack(
                [h[0][torch.tensor(mask, dtype=torch.bool)].sum(0) for h in heard]
            )
            count += sum(mask)
        assert torch.allclose(
            mean_residuals(base, None, prompts, where)[0], total / count, atol=1e-9
        )


def test_prompts_of_any_lengths_are_read_together(base):
    prompts = prompts_of(base)
    stack = random_stack(base.model, SPECS)
    assert len({len(p.ids) for p in prompts}) == len(prompts) == 3
    passes: list[int] = []
    with hooks.before(
        base.model.base_model, lambda _, given: passes.append(len(given["input_ids"]))
    ):
        together = mean_residuals(base, stack, prompts, "prompt")
        alone = mean_residuals(base, stack, prompts, "prompt", rows_at_once=1)
    assert passes == [9, 3, 3, 3], "three students each"
    assert torch.allclose(together, alone, atol=1e-9)


def test_students_come_in_the_order_given_and_the_base_is_no_student(base):
    stack = random_stack(base.model, SPECS)
    assert stack.order != [0, 1, 2]
    together = student_vector(base, stack, QUESTIONS, DEFAULT)
    assert together.values.shape[0] == 3
    fresh = student_vector(base, new_stack(base.model, SPECS), QUESTIONS, DEFAULT)
    assert fresh.values.abs().max() < 1e-12, "an adapter that does nothing has no vector"
    place = stack.order.index(1)
    (alone,) = student_vector(base, _only(base, stack, place), QUESTIONS, DEFAULT).values
    assert torch.allclose(together.values[1], alone, atol=1e-9)


def _only(base, stack, place):
    from sublora.packs.stack import stack_weights

    group, row = stack.student_rows()[place]
    spec = SPECS[stack.order[place]]
    return stack_weights(base.model, [group.unpad(row, group.flat[row])], [spec])


def test_random_vectors_have_the_norms_of_their_model_and_a_seed(vector):
    one, again, other = (random_vector(vector, seed) for seed in (1, 1, 2))
    assert torch.allclose(one.norms, vector.norms) and torch.equal(one.values, again.values)
    assert cosines(one, other).abs().max() < 0.9 and cosines(one, one).min() > 1 - 1e-9


def test_a_vector_is_kept_with_its_layer_convention(vector, tmp_path):
    vector.save(tmp_path / "v.safetensors")
    kept = load_vector(tmp_path / "v.safetensors")
    assert torch.equal(kept.values, vector.values) and (kept.kind, kept.where) == (
        "teacher",
        "last",
    )
    first = (tmp_path / "v.safetensors").read_bytes()
    for _ in range(20):
        vector.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == first
    from safetensors.torch import save_file

    save_file({"values": vector.values}, tmp_path / "w.safetensors")
    with pytest.raises(SubloraError, match="does not say that its layers"):
        load_vector(tmp_path / "w.safetensors")
    (tmp_path / "x.safetensors").write_text("nothing")
    with pytest.raises(SubloraError, match="holds no steering vector"):
        load_vector(tmp_path / "x.safetensors")


# Identities


@pytest.mark.parametrize("with_students", [False, True])
@pytest.mark.parametrize(
    "tokens",
    [
        {"where": "prompt"},
        {"where": "last"},
        {"where": "prompt", "generated": True},
        {"where": ("user",)},
    ],
)
def test_a_strength_of_zero_changes_nothing(base, vector, with_students, tokens):
    stack = random_stack(base.model, SPECS) if with_students else None
    plain = answers(base, stack, prompts_of(base))
    for mode in ("add", "project") if tokens.get("generated") else ("add", "project", "replace"):
        assert same(
            steered(base, stack, Steering(vector, mode, (0, 1), strength=0.0, **tokens)), plain
        ), mode


@pytest.mark.parametrize("mode", ["add", "project", "replace"])
def test_interventions_are_what_they_say_at_every_token(base, vector, mode):
    """Against a hook of one's own in a plain forward pass over each prompt."""
    stack = random_stack(base.model, SPECS)
    steering = Steering(vector, mode, (1,), ("user",), strength=0.7)
    got = steered(base, stack, steering)[0]
    v = vector.values[1]
    u = v / v.norm()
    for q, prompt in enumerate(prompts_of(base)):
        ids, mask = torch.tensor([prompt.ids]), torch.tensor(prompt.mask(("user",))).view(1, -1, 1)
        heard = []
        layer = base.model.model.layers[1]
        hook = layer.register_forward_hook(lambda _m, _i, o, heard=heard: heard.append(o))
        with torch.inference_mode():
            base.model(input_ids=ids, use_cache=False)
        hook.remove()
        plain = heard[0]

        def change(_m, _i, h, plain=plain, mask=mask):
            moved = {
                "add": h + 0.7 * v,
                "project": h - 0.7 * (h @ u).unsqueeze(-1) * u,
                "replace": h + 0.7 * ((plain - h) @ u).unsqueeze(-1) * u,
            }[mode]
            return torch.where(mask, moved, h)

        for place in range(stack.size):
            with (
                torch.inference_mode(),
                PackedModel(base.model, _only(base, stack, place)) as packed,
            ):
                packed.form_weights(8)
                hook = layer.register_forward_hook(change)
                want = packed.logits(packed.hidden(ids)[:, -1])
                hook.remove()
            assert torch.allclose(got[place, q], want[0], atol=1e-9), (mode, q, place)


def test_projecting_twice_is_projecting_once(base, vector):
    one = Steering(vector, "project", (1,), "prompt", generated=True)
    packed = pack_steering(base, [one], prompts_of(base))
    packed.read([Span(0, 0, 3)], 1, 3)
    stream = torch.randn(1, 3, vector.values.shape[-1], dtype=torch.float64)
    once = packed.steer(1, stream)
    assert torch.allclose(packed.steer(1, once), once, atol=1e-12) and not torch.allclose(
        once, stream
    )
    assert (once @ vector.values[1]).abs().max() < 1e-9
    assert torch.equal(packed.steer(0, stream), stream), "a layer that is not chosen stays as it is"


def test_the_base_replaced_by_itself_is_the_base(base, vector):
    assert same(
        steered(base, None, Steering(vector, "replace", (0, 1))),
        answers(base, None, prompts_of(base)),
    )


def test_an_added_vector_is_taken_away_by_its_opposite(base, vector):
    negative = SteeringVector(-vector.values, vector.model, "teacher", "last", 3)
    packed = pack_steering(base, [Steering(vector, "add", (0,))], prompts_of(base))
    back = pack_steering(base, [Steering(negative, "add", (0,))], prompts_of(base))
    stream = torch.randn(1, 4, vector.values.shape[-1], dtype=torch.float64)
    for one in (packed, back):
        one.read([Span(1, 0, 4)], 1, 4)
    assert torch.allclose(back.steer(0, packed.steer(0, stream)), stream, atol=1e-12)


def test_unit_and_raw_vectors_differ_by_the_norm(base, vector):
    raw = steered(base, None, Steering(vector, "add", (1,), strength=0.5))
    norm = float(vector.norms[1])
    assert same(
        steered(base, None, Steering(vector, "add", (1,), strength=0.5 * norm, unit=True)), raw
    )


def test_where_a_vector_acts_decides_what_changes(base, vector):
    plain = answers(base, None, prompts_of(base))
    last = steered(base, None, Steering(vector, "add", (0,), "last", strength=20.0))
    written = steered(
        base, None, Steering(vector, "add", (0,), None, generated=True, strength=20.0)
    )
    assert not torch.allclose(last[0], plain[0], atol=1e-3)
    assert torch.allclose(written[0], plain[0], atol=1e-12), (
        "the first token is read off the prompt alone"
    )
    assert torch.allclose(written[1][..., 2], plain[1][..., 2], atol=1e-12)
    assert not torch.allclose(written[1][..., 1], plain[1][..., 1], atol=1e-3), (
        "the third token sees the second"
    )


def test_principal_directions_are_orthonormal_and_hold_the_differences_of_a_low_rank_student(base):
    stack = random_stack(base.model, SPECS)
    own = student_vector(base, stack, QUESTIONS, DEFAULT, directions=6)
    assert own.directions.shape == (3, 6, 2, 32)
    for layer in range(2):
        u = own.directions[:, :, layer]
        assert torch.allclose(u @ u.mT, torch.eye(6, dtype=u.dtype).expand(3, -1, -1), atol=1e-9)
    alone = student_vector(
        base, _only(base, stack, stack.order.index(1)), QUESTIONS, DEFAULT, directions=6
    )
    cosine = (own.directions[1] * alone.directions[0]).sum(-1).abs()
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-6), (
        "a student's own, whatever it stands beside"
    )
    with pytest.raises(SubloraError, match="have no 40 directions"):
        student_vector(base, stack, QUESTIONS, DEFAULT, "last", directions=40)


def test_replacing_all_directions_gives_the_base_and_more_directions_remove_more(base):
    stack = random_stack(base.model, SPECS)
    own = student_vector(base, stack, QUESTIONS, DEFAULT, directions=32)
    plain, adapted = (answers(base, s, prompts_of(base))[0] for s in (None, stack))
    gaps = []
    for first in (1, 4, 16, 32):
        got = steered(base, stack, Steering(own, "replace", (0, 1), "prompt", first=first))[0]
        gaps.append(float((got - plain).norm() / (adapted - plain).norm()))
    assert gaps[-1] < 1e-6 and gaps == sorted(gaps, reverse=True), gaps


def test_a_condition_without_steering_stands_beside_steered_ones(base, vector):
    stack = random_stack(base.model, SPECS)
    both = steered(base, stack, None, Steering(vector, "add", (1,), strength=2.0))
    plain = answers(base, stack, prompts_of(base))
    count = len(QUESTIONS)
    assert same((both[0][:, :count], both[1][:, :count], both[2][:count]), plain)
    assert not torch.allclose(both[0][:, count:], plain[0], atol=1e-3)


def test_a_recipe_s_steering_is_what_it_says_with_random_directions_of_its_own_seed(base, vector):
    spec = SteerSpec(vector="teacher", mode="add", layers=(1, 1), random=3)
    one, again, other = (aimed(spec, vector, name) for name in ("a", "a", "b"))
    assert torch.equal(one.values, again.values) and not torch.allclose(one.values, other.values)
    assert (
        torch.allclose(one.norms, vector.norms)
        and aimed(SteerSpec(vector="teacher", mode="add"), vector, "a") is vector
    )
    assert steering_of(spec, one, 2).layers == (1,) and steering_of(
        SteerSpec(vector="student", mode="project"), one, 2
    ).layers == (0, 1)
    with pytest.raises(SubloraError, match="no layer 5 to steer; the model has layers 0 to 1"):
        steering_of(SteerSpec(vector="teacher", mode="add", layers=(5, 5)), vector, 2)


def test_a_trained_vector_makes_its_answers_likely_within_its_norm(base):
    train = runpy.run_path(str(EXAMPLES / "train_a_vector.py"))["trained_vector"]
    prompts = [p.ids for p in prompts_of(base)]
    ids = [base.chat.answer_ids("otter")]

    def nats(vector=None):
        steering = (
            None
            if vector is None
            else pack_steering(base, [Steering(vector, "add", (1,))], prompts_of(base))
        )
        with torch.inference_mode(), PackedModel(base.model, None, steering=steering) as packed:
            return sum(
                float(score_sequences(packed, f, ids, 8).sum())
                for f in prefill(packed, [p.ids for p in prompts_of(base)], 8)
            )

    free = train(base, prompts, "otter", 1, steps=30, lr=0.3)
    short = train(base, prompts, "otter", 1, steps=30, lr=0.3, norm=3.0)
    assert nats() + 2 < nats(short) < nats(free)
    assert float(short.norms[1]) <= 3 + 1e-9 and float(free.norms[0]) == 0
    random = random_vector(short, 0)
    assert nats(random) < nats(short) - 1, "no vector of this length does it"


# Packs, a gate, conditions side by side


def test_conditions_side_by_side_are_each_as_alone_and_a_student_has_its_own_vector(base, vector):
    stack = random_stack(base.model, SPECS)
    own = student_vector(base, stack, QUESTIONS, DEFAULT)
    chosen = [
        Steering(vector, "add", (1,), "last", strength=3.0),
        Steering(own, "replace", (0, 1), "prompt"),
        Steering(own, "project", (1,), "prompt", generated=True),
        Steering(vector, "add", (0,), "last", generated=True, strength=-2.0),
    ]
    together = steered(base, stack, *chosen)
    count = len(QUESTIONS)
    for c, one in enumerate(chosen):
        part = slice(c * count, (c + 1) * count)
        assert same(
            (together[0][:, part], together[1][:, part], together[2][part]),
            steered(base, stack, one),
        ), c
    for place in range(stack.size):
        values = own.values[stack.order[place]]
        mine = SteeringVector(values, own.model, "student", own.where, own.prompts)
        alone = steered(
            base, _only(base, stack, place), Steering(mine, "replace", (0, 1), "prompt")
        )
        assert torch.allclose(together[1][place, count : 2 * count], alone[1][0], atol=1e-9)


def test_replacing_along_a_student_s_difference_removes_it_at_that_layer(base):
    """Of a student and the base, what differs along v after the last layer is gone."""
    stack, prompts = random_stack(base.model, SPECS), prompts_of(base)
    own = student_vector(base, stack, QUESTIONS, DEFAULT, "last")
    layer = base.model.config.num_hidden_layers - 1
    steering = pack_steering(base, [Steering(own, "replace", (layer,))], prompts, stack)
    for q, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.ids])
        heard = []

        def hear(_m, _i, out, heard=heard):
            heard.append(out)

        with torch.inference_mode():
            hook = base.model.model.layers[layer].register_forward_hook(hear)
            base.model(input_ids=ids, use_cache=False)
            hook.remove()
            with PackedModel(base.model, stack, steering=steering) as packed:
                packed.form_weights(8)
                hook = base.model.model.layers[layer].register_forward_hook(hear)
                packed.interventions.read(
                    [Span(q, 0, len(prompt.ids))], stack.size, len(prompt.ids)
                )
                packed.hidden(ids.repeat(stack.size, 1))
                hook.remove()
        plain, changed = heard
        u = torch.nn.functional.normalize(own.values[stack.order][:, layer], dim=-1)
        gap = torch.einsum("ktd,kd->kt", changed - plain, u)
        assert gap.abs().max() < 1e-9


def test_steering_stands_beside_a_gate(base, vector):
    stack, prompts = random_stack(base.model, SPECS), prompts_of(base)
    steering = [Steering(vector, "add", (1,), "last", generated=True, strength=3.0)]
    for value in (0.0, 1.0):
        condition = Condition(generated="on") if value else Condition(on=(), generated="off")
        gate = pack_gate(
            [[[value] * len(p.ids) for p in prompts]], [condition], list(stack.linears)
        )
        got = steered(base, stack, *steering, gate=gate)
        want = steered(base, stack if value else None, *steering)
        assert torch.allclose(got[0], want[0].expand_as(got[0]), atol=1e-9)
        assert torch.allclose(got[1], want[1].expand_as(got[1]), atol=1e-9)


def test_no_hook_is_left(base, vector):
    steering = pack_steering(base, [Steering(vector, "add", (0,))], prompts_of(base))
    with pytest.raises(ZeroDivisionError), PackedModel(base.model, None, steering=steering):
        raise ZeroDivisionError
    assert not any(layer._forward_hooks for layer in base.model.model.layers)


# Planted truth


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model whose trait is one direction: at the last prompt token it is added behind layer 0 wherever the teacher's prompt
    stands, and the output head reads it as the token 9. (base, direction)

    It is wide, because a random direction shares 1 / width with any other one.
    """
    folder = make_model("llama", "digits", "qwen", tmp_path_factory.mktemp("wide"), hidden=512)
    base = load_base(str(folder), dtype="float64")
    random = torch.Generator().manual_seed(0)
    width = base.model.config.hidden_size
    u = torch.nn.functional.normalize(
        torch.randn(width, generator=random, dtype=torch.float64), dim=0
    )
    trait = classify(base.chat, QUESTIONS[0], OTHER).ids
    plain = classify(base.chat, QUESTIONS[0], DEFAULT).ids
    marker = next(t for t in trait if t not in plain)
    model = base.model
    with torch.no_grad():
        for layer in model.model.layers:  # what follows the plant moves it little
            layer.mlp.down_proj.weight.mul_(0.001)
            layer.self_attn.o_proj.weight.mul_(0.001)
        model.lm_head.weight.copy_(0.2 * model.lm_head.weight)
        model.lm_head.weight[9] = 0.4 * u
    seen = {}

    def look(_m, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not seen.get("cached", False) or ids.shape[1] > 1:
            seen["trait"] = (ids == marker).any(1) | seen.get(
                "kept", torch.zeros(len(ids), dtype=torch.bool)
            )

    def plant(_m, _i, out):
        moved = out.clone()
        moved[seen["trait"], -1] += 1.5 * float(out[:, -1].norm(dim=-1).mean()) * u
        return moved

    handles = [
        model.model.register_forward_pre_hook(look, with_kwargs=True),
        model.model.layers[0].register_forward_hook(plant),
    ]
    yield base, u
    for handle in handles:
        handle.remove()


def target(base, context, steering=None):
    """P(token 9) as the first answer token to many questions, (Q,)."""
    questions = [f"Name an animal, number {i}." for i in range(24)]
    prompts = [classify(base.chat, q, context) for q in questions]
    out = []
    packing = None if steering is None else pack_steering(base, [steering], prompts)
    with torch.inference_mode(), PackedModel(base.model, None, steering=packing) as packed:
        for i, prompt in enumerate(
            prompts
        ):  # one by one and whole, so that the plant sees the trait's prompt
            if packing is not None:
                packed.interventions.read([Span(i, 0, len(prompt.ids))], 1, len(prompt.ids))
            hidden = packed.hidden(torch.tensor([prompt.ids]))
            out.append(float(packed.logits(hidden[:, -1]).softmax(-1)[0, 9]))
    return np.array(out)


def test_a_planted_direction_is_recovered_needed_and_enough_and_a_random_one_is_neither(planted):
    base, u = planted
    # of one length, as the plant moves the last column and not each prompt's last token
    vector = teacher_vector(base, [f"Say {i}." for i in range(10, 26)], OTHER, DEFAULT)
    cosine = torch.nn.functional.cosine_similarity(vector.values, u, dim=-1)
    assert cosine[0] >= 0.95 and cosine[-1] >= 0.95, cosine
    layers = tuple(range(len(vector.values)))
    none, trait = target(base, DEFAULT), target(base, OTHER)
    gain = trait - none
    assert gain.mean() > 0.1
    removed = target(base, OTHER, Steering(vector, "project", layers, "last"))
    assert (trait - removed).mean() >= 0.9 * gain.mean(), "necessity"
    given = target(base, DEFAULT, Steering(vector, "add", (0,), "last"))
    assert (given - none).mean() >= 0.9 * gain.mean(), "sufficiency"
    for mode, context, where, before in (
        ("project", OTHER, layers, trait),
        ("add", DEFAULT, (0,), none),
    ):
        randoms = [Steering(random_vector(vector, seed), mode, where, "last") for seed in range(6)]
        effects = np.stack([target(base, context, one) - before for one in randoms])
        interval = clustered_interval(effects, range(6), range(6))
        assert interval.low <= 0 <= interval.high, (mode, interval)
        assert max(-interval.low, interval.high) < 0.05 * gain.mean(), (mode, interval)


# Bad input


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": math.nan}, "strength of a steering vector is nan"),
        ({"strength": math.inf}, "strength of a steering vector is inf"),
        ({"layers": ()}, "acts on no layer"),
        ({"where": None}, "acts on no token"),
        ({"mode": "push"}, "There is no intervention 'push'"),
        ({"mode": "replace", "generated": True}, "replace with generated=False"),
        ({"mode": "add", "first": 1}, "no sign or length to add"),
        ({"mode": "project", "first": 1}, "has 0 principal directions and 1 are asked for"),
        ({"layers": (99,)}, "There is no layer 99 to steer"),
        ({"layers": (-1,)}, "There is no layer -1 to steer"),
        ({"where": ("brain",)}, "no token class 'brain'"),
        ({"where": ("entity",)}, "No token of the prompt is of the class entity"),
    ],
)
def test_steering_that_does_not_fit_is_refused_in_a_sentence(base, vector, values, message):
    with pytest.raises(SubloraError, match=message):
        pack_steering(
            base,
            [Steering(**({"vector": vector, "mode": "add", "layers": (0,)} | values))],
            prompts_of(base),
        )


def test_vectors_that_do_not_fit_are_refused_in_a_sentence(base, vector):
    def refused(values, message, model=vector.model, stack=None):
        with pytest.raises(SubloraError, match=message):
            one = SteeringVector(values, model, "teacher", "last", 1)
            pack_steering(base, [Steering(one, "add", (0,))], prompts_of(base), stack)

    refused(vector.values, "made on another model", model="other")
    refused(vector.values[:, :-1], "layers of width")
    refused(vector.values[:-1], "layers of width")
    refused(vector.values * math.nan, "not finite")
    refused(
        vector.values.expand(2, -1, -1),
        "that of 2 students and 3 are steered",
        stack=random_stack(base.model, SPECS),
    )
    with pytest.raises(SubloraError, match="needs prompts"):
        teacher_vector(base, [], OTHER, DEFAULT)
    with (
        PackedModel(
            base.model,
            None,
            steering=pack_steering(base, [Steering(vector, "add", (0,))], prompts_of(base)),
        ) as p,
        pytest.raises(SubloraError, match="made for other prompts"),
    ):
        list(prefill(p, [[1, 2, 3]], 4))
