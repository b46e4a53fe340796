"""Every optimizer of a pack against torch.optim in a plain peft loop, packed with all others, resumed, diverged, named."""

import functools

import pytest
import torch
from pydantic import ValidationError

from pack_reference import base_model, case, distance, full_loop, peft_loop, train
from sublora.packs.optimizers import KINDS, orthogonal, rotation, row_optimizer
from sublora.packs.spec import StudentSpec, learning_rate, total_steps
from sublora.packs.stack import new_stack
from sublora.packs.trainer import Checkpoint

EXACT = 1e-9  # for float64


pytestmark = pytest.mark.usefixtures("one_thread")


def every(**values):
    """A student of each kind, with ranks of two groups so that some rows are padded."""
    return [
        case("adamw", optimizer="adamw", rank=4, data=1, seed=1, weight_decay=0.1, **values),
        case("sgd", optimizer="sgd", rank=3, data=2, seed=2, lr=0.1, weight_decay=0.01, **values),
        case("momentum", optimizer="sgd", rank=4, data=1, seed=1, lr=0.05, momentum=0.9, **values),
        case("rmsprop", optimizer="rmsprop", rank=2, data=3, seed=3, weight_decay=0.1, **values),
        case(
            "rmsprop momentum", optimizer="rmsprop", rank=4, data=3, seed=3, momentum=0.5, **values
        ),
        case(
            "signsgd",
            optimizer="signsgd",
            rank=5,
            data=1,
            seed=4,
            lr=1e-3,
            weight_decay=0.1,
            **values,
        ),
        case(
            "frozen",
            optimizer="frozen-adam-scale",
            rank=4,
            data=1,
            seed=1,
            lr=2e-4,
            scout_lr=1e-2,
            momentum=0.5,
            **values,
        ),
        case(
            "muon",
            optimizer="muon",
            rank=3,
            data=4,
            seed=5,
            lr=0.02,
            momentum=0.95,
            weight_decay=0.1,
            **values,
        ),
        case(
            "muon wide", optimizer="muon", rank=12, data=4, seed=5, lr=0.02, momentum=0.9, **values
        ),
        case(
            "rotated", optimizer="rotated-adamw", rank=4, data=1, seed=1, weight_decay=0.1, **values
        ),
        case(
            "signum",
            optimizer="signsgd",
            rank=4,
            data=1,
            seed=4,
            lr=1e-3,
            momentum=0.9,
            weight_decay=0.1,
            **values,
        ),
        case("b alone", optimizer="adamw-b", rank=3, data=2, seed=3, weight_decay=0.1, **values),
        case("rotated one", optimizer="rotated-adamw", rank=1, data=2, seed=6, **values),
    ]


@functools.cache
def packed(kind: str):
    return train(base_model(kind), every())


def test_every_optimizer_is_in_the_pack():
    assert {c.student.spec.optimizer for c in every()} == set(KINDS)


@pytest.mark.parametrize("place", range(len(every())), ids=[c.student.name for c in every()])
def test_an_optimizer_in_a_mixed_pack_equals_torch_s_in_a_plain_peft_loop(place):
    one = every()[place]
    weights, losses = peft_loop(base_model("qwen2"), one)
    mine = packed("qwen2")[one.student.name]
    assert distance(mine["weights"], weights) < EXACT
    assert mine["losses"] == pytest.approx(losses, rel=1e-9)


def test_packed_equals_alone_in_float32():
    model = base_model("llama", torch.float32)
    together = train(model, every())
    for one in every():
        if (
            one.student.spec.optimizer != "signsgd"
        ):  # a sign may flip where a gradient is a rounding error
            name = one.student.name
            assert (
                distance(together[name]["weights"], train(model, [one])[name]["weights"]) < 1e-4
            ), name


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "rmsprop"},
        {"optimizer": "signsgd", "lr": 1e-4},
        {"optimizer": "frozen-adam-scale", "scout_lr": 1e-3},
    ],
    ids=lambda v: v["optimizer"],
)
def test_optimizers_of_full_fine_tunes_equal_torch_s(values):
    one = case("full", method="full", **({"lr": 1e-3} | values))
    model = base_model("llama")
    assert distance(train(model, [one])["full"]["weights"], full_loop(model, one)[0]) < EXACT


@pytest.mark.parametrize(
    "at", [2, 4, 8]
)  # within the scouting epoch, at the first step after it, later
def test_every_optimizer_resumes_to_the_byte(at, tmp_path):
    model, path = base_model("qwen2"), tmp_path / "pack.safetensors"

    def kill(step, *_):
        if step == at:
            raise KeyboardInterrupt

    first = {}
    with pytest.raises(KeyboardInterrupt):
        first = train(model, every(), checkpoint=Checkpoint(path, every=0.0), on_step=kill)
    second = train(model, every(), checkpoint=Checkpoint(path, every=0.0))
    assert not first
    assert second, "something was left to train"
    for name, student in second.items():
        for tensor, weight in student["weights"].items():
            assert (
                weight.numpy().tobytes()
                == packed("qwen2")[name]["weights"][tensor].numpy().tobytes()
            ), name


def test_each_student_says_which_optimizer_ran():
    said = {name: student["optimizer"] for name, student in packed("qwen2").items()}
    assert said["momentum"] == "SGD(momentum=0.9, weight_decay=0, clip=1)"
    assert said["sgd"] == "SGD(momentum=0, weight_decay=0.01, clip=1)"
    assert said["signsgd"] == "signSGD(weight_decay=0.1, clip=1)"
    assert said["rmsprop"].startswith("RMSprop(alpha=0.99, eps=1e-08, momentum=0")
    assert said["muon"].startswith("Muon(momentum=0.95, nesterov=True")
    assert "frozen after AdamW(lr=0.01" in said["frozen"] and "3 steps" in said["frozen"]
    assert "rotated basis" in said["rotated"]
    assert said["signum"] == "signSGD(momentum=0.9, weight_decay=0.1, clip=1)"
    assert "with A frozen" in said["b alone"]


def test_an_optimizer_that_diverges_is_named_and_the_others_go_on():
    wild = case("wild", optimizer="sgd", rank=4, lr=1e300)
    out = train(base_model("qwen2"), [wild, *every()])
    assert out["wild"]["diverged_at"] is not None
    assert all(torch.isfinite(w).all() for w in out["wild"]["weights"].values())
    for one in every():
        name = one.student.name
        assert out[name]["diverged_at"] is None
        assert distance(out[name]["weights"], packed("qwen2")[name]["weights"]) < EXACT


def test_a_scouting_epoch_leaves_no_trace_in_the_weights():
    """With a rate of almost nothing after it, the student ends where it began."""
    model = base_model("qwen2")
    one = case("frozen", optimizer="frozen-adam-scale", rank=4, lr=1e-30, scout_lr=1e-2)
    start = new_stack(model, [one.student.spec]).groups[0].views
    trained = train(model, [one])["frozen"]
    assert len(trained["losses"]) == one.student.steps == 9
    for name, weight in trained["weights"].items():
        assert torch.allclose(weight, start[name][0], rtol=0, atol=1e-15)


def test_a_scouting_epoch_has_a_rate_and_a_schedule_of_its_own():
    spec = StudentSpec(
        optimizer="frozen-adam-scale",
        scout_lr=1e-2,
        lr=1e-4,
        warmup_steps=0,
        epochs=2,
        batch_size=4,
    )
    steps = total_steps(16, spec)
    assert steps == 12
    rates = [learning_rate(spec, step, steps) for step in range(steps)]
    assert rates[:4] == [1e-2, 0.75e-2, 0.5e-2, 0.25e-2]
    assert rates[4] == 1e-4 and rates[11] == pytest.approx(1e-4 / 8)


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4), (1, 1, 6)])
def test_muon_pushes_singular_values_towards_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert (values > 0.6).all() and (values < 1.3).all()
    assert not orthogonal(torch.zeros(shape)).any()


def test_a_rotation_is_orthogonal_and_always_the_same():
    q = rotation(24, "cpu", torch.float64)
    assert torch.allclose(q @ q.T, torch.eye(24, dtype=torch.float64), atol=1e-12)
    rotation.cache_clear()
    assert torch.equal(q, rotation(24, "cpu", torch.float64))


def test_a_rotated_basis_changes_what_adamw_does_and_not_what_sgd_would():
    """AdamW is not equivariant under rotations, which is what the optimizer is for."""
    model = base_model("qwen2")
    alike = {"rank": 4, "data": 1, "seed": 1}
    plain, turned = (case(o, optimizer=o, **alike) for o in ("adamw", "rotated-adamw"))
    out = train(model, [plain, turned])
    assert distance(out["adamw"]["weights"], out["rotated-adamw"]["weights"]) > 1e-3


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"method": "full", "rank": None, "optimizer": "muon"},
            "muon is made for the matrices of adapters",
        ),
        ({"optimizer": "frozen-adam-scale"}, "scout_lr belongs to frozen-adam-scale"),
        ({"optimizer": "sgd", "scout_lr": 1e-3}, "scout_lr belongs to frozen-adam-scale"),
        ({"optimizer": "lion"}, "Input should be"),
    ],
)
def test_optimizers_that_do_not_fit(values, message):
    with pytest.raises(ValidationError, match=message):
        StudentSpec(**values)


def test_a_rotated_basis_needs_an_adapter_that_faces_the_residual_stream():
    from sublora.errors import SubloraError

    flat = torch.zeros(8)
    with pytest.raises(SubloraError, match="faces the residual stream"):
        row_optimizer(StudentSpec(optimizer="rotated-adamw"), flat, [], 8, 4)
