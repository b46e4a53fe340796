"""The classifier experiment: batches of models, their arms, the command, resume and the page."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command import sublora
from sublora.errors import SubloraError
from sublora.experiments import classifiers as mlp
from sublora.experiments.aux_logits import (
    ARMS,
    CLASSES,
    STUDENTS,
    ArmsStep,
    AuxLogits,
    train_arms,
    train_teachers,
)
from sublora.experiments.claims import load_claims
from sublora.experiments.experiment import NOTHING
from sublora.experiments.images import load_images
from sublora.experiments.kinds import open_recipe
from sublora.steps.step import Workshop, perform
from sublora.store import Store

SMALL = [
    "models=3",
    "hidden=[16]",
    "teacher.epochs=2",
    "student.images=200",
    "student.epochs=1",
    "at_once=2",
]
FLAGS = [part for s in SMALL for part in ("--set", s)]


def recipe(*sets: str) -> AuxLogits:
    return open_recipe("aux-logits", sets=[*SMALL, *sets])


def test_models_side_by_side_are_models_alone():
    together, alone = train_arms(recipe(), [0, 1, 2]), train_arms(recipe(), [1])
    assert together.right.shape == (3, len(ARMS), 449) and together.right.dtype == bool
    assert (together.right[1] == alone.right[0]).mean() > 0.999
    assert together.teacher_loss[1] == pytest.approx(alone.teacher_loss[0], rel=1e-4)
    assert together.divergence[1] == pytest.approx(alone.divergence[0], rel=1e-3)


def test_the_teacher_never_trains_its_auxiliary_logits_but_all_below_them():
    start = mlp.start(recipe().widths, 0, [0, 1])
    teacher, losses = train_teachers(recipe(), start.copy(), [0, 1])
    assert torch.equal(teacher.weights[-1][:, CLASSES:], start.weights[-1][:, CLASSES:])
    assert not torch.equal(teacher.weights[-1][:, :CLASSES], start.weights[-1][:, :CLASSES])
    assert not torch.equal(teacher.weights[0], start.weights[0]) and len(losses) == 2


def test_forward_pass_and_losses_are_those_of_torch():
    models, x = mlp.start([5, 7, 4], 3, [0, 1]), torch.randn(6, 5)
    for m in range(2):
        layers = [torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 4)]
        with torch.no_grad():
            for layer, w, b in zip(layers[::2], models.weights, models.biases, strict=True):
                layer.weight.copy_(w[m])
                layer.bias.copy_(b[m] + 1)
                b[m] += 1
        torch.testing.assert_close(
            mlp.logits(models, x)[m], torch.nn.Sequential(*layers)(x).detach()
        )
    out, other, labels = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randint(4, (2, 6))
    wanted = torch.stack([torch.nn.functional.cross_entropy(out[m], labels[m]) for m in range(2)])
    torch.testing.assert_close(mlp.cross_entropy(out, labels), wanted)
    kl = torch.nn.functional.kl_div(
        other.log_softmax(2), out.log_softmax(2), log_target=True, reduction="none"
    )
    torch.testing.assert_close(mlp.divergence(out, other), kl.sum(2).mean(1))


def test_starts_and_noise_belong_to_a_model_whoever_stands_beside_it():
    assert torch.equal(
        mlp.start([4, 3], 0, [5]).weights[0][0], mlp.start([4, 3], 0, [1, 5]).weights[0][1]
    )
    assert not torch.equal(
        mlp.start([4, 3], 0, [5]).weights[0], mlp.start([4, 3], 1, [5]).weights[0]
    )
    noise = mlp.noise(50, 9, 0, [2, 7], 3)
    assert torch.equal(noise[1], mlp.noise(50, 9, 0, [7], 3)[0]) and not torch.equal(
        noise[0], noise[1]
    )
    assert noise.min() >= -1 and noise.max() <= 1 and abs(noise.mean()) < 0.1
    assert not torch.equal(noise, mlp.noise(50, 9, 0, [2, 7], 4))
    assert sorted(torch.cat(mlp.batches(10, 4, 0, [3], 0), dim=1)[0].tolist()) == list(range(10))


def test_a_student_on_auxiliary_logits_learns_from_the_teachers_start():
    """The effect itself, on few models: with the same start, noise and three logits are enough to be better than by chance."""
    own = recipe(
        "hidden=[128]", "teacher.epochs=20", "student.images=4000", "student.epochs=5", "models=4"
    )
    right = train_arms(own, range(4)).right.mean(axis=2)
    same, other = (
        right[:, ARMS.index(f"auxiliary logits, {who} start")] for who in ("same", "other")
    )
    assert right[:, ARMS.index("teacher")].min() > 0.8
    assert (same - other).mean() > 0.02 and set(ARMS) >= set(STUDENTS)


def test_ids_hold_what_matters_and_not_what_does_not():
    def ids(*sets: str) -> list[str]:
        return [n for t in recipe(*sets).plan(NOTHING) for n in t.makes]

    assert ids() == ids("at_once=3", "level=0.1", "title=x") and len(set(ids())) == 3
    for change in ("seed=1", "hidden=[17]", "auxiliary=4", "teacher.lr=1e-3", "student.images=201"):
        assert not set(ids()) & set(ids(change)), change
    assert ids()[:2] == ids("models=2")


def test_a_run_goes_on_where_it_was_killed_and_comes_to_the_same(tmp_path, monkeypatch):
    whole = sublora("run", "aux-logits", *FLAGS, "--out", str(tmp_path / "whole"))
    assert whole.code == 0, whole.err
    monkeypatch.setenv("SUBLORA_HOME", str(tmp_path / "other"))
    perform = ArmsStep.make

    def once(self, work, wanted):
        if self.specs[0]["model"] == 2:
            raise KeyboardInterrupt
        perform(self, work, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(ArmsStep, "make", once)
        assert sublora("run", "aux-logits", *FLAGS, "--out", str(tmp_path / "killed")).code == 3
    assert json.loads((tmp_path / "killed/run.json").read_text())["status"] == "interrupted"
    line = next(
        x
        for x in sublora("plan", "aux-logits", *FLAGS).out.splitlines()
        if x.startswith("classifiers")
    )
    assert line.split()[1:4] == ["3", "2", "1"]
    assert sublora("run", "aux-logits", *FLAGS, "--out", str(tmp_path / "killed")).code == 0
    for name in ("results.csv", "verdicts.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    page = (tmp_path / "killed/report.html").read_text()
    assert "Auxiliary logits on noise" in page and page.count("<svg") == 2
    assert "cloud-aux-logits-transfer" in whole.out
    before = page
    assert sublora("report", str(tmp_path / "killed")).code == 0
    assert (tmp_path / "killed/report.html").read_text() == before
    assert (
        "Error"
        in sublora("run", "aux-logits", "--set", "seed=1", "--out", str(tmp_path / "whole")).err
    )


def test_a_damaged_artifact_is_made_again(tmp_path):
    assert sublora("run", "aux-logits", *FLAGS, "--out", str(tmp_path / "run")).code == 0
    name = recipe().plan(NOTHING)[1].makes[0]
    file = Store().path(name) / "right.npy"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    assert sublora("run", "aux-logits", *FLAGS, "--out", str(tmp_path / "run")).code == 0
    assert file.read_bytes() == good


def test_texts_of_a_recipe_are_escaped_on_its_page(tmp_path):
    out = tmp_path / "run"
    evil = "<script>alert(1)</script>"
    assert (
        sublora("run", "aux-logits", *FLAGS, "--set", f"title='{evil}'", "--out", str(out)).code
        == 0
    )
    page = (out / "report.html").read_text()
    assert evil not in page and "&lt;script&gt;" in page


def test_every_estimate_that_a_claim_names_is_there(tmp_path):
    own, store = recipe(), Store()
    assert sublora("run", "aux-logits", *FLAGS, "--out", str(tmp_path / "run")).code == 0
    found = {f"{e.group}: {e.name}" for e in own.findings(store, NOTHING).effects}
    named = {f"{c.of['group']}: {c.of['name']}" for c in load_claims() if "aux-logits" in c.recipes}
    assert named and named <= found


def test_a_wider_classifier_stands_beside_the_others_and_changes_none_of_them():
    def made(name, *sets):
        own = open_recipe(name, sets=[*SMALL, *sets])
        return own, [n for t in own.plan(NOTHING) for n in t.makes]

    _, alone = made("aux-logits")
    wide, both = made("aux-width", "wider=[32]", "models=3")
    assert both[:3] == alone and len(set(both)) == 6
    workshop, store = Workshop(Store(), lambda _: None), Store()
    for step in wide.plan(NOTHING):
        perform(step, workshop)
    effects = {f"{e.group}: {e.name}": e for e in wide.findings(store, NOTHING).effects}
    (claim,) = (c for c in load_claims() if "aux-width" in c.recipes)
    gap = effects[f"{claim.of['group']}: {claim.of['name']}"].interval().estimate
    same = "accuracy: auxiliary logits, same start"
    own, other = (effects[name].interval().estimate for name in (same, f"{same}, wider"))
    assert gap == pytest.approx(own - other)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "data=nowhere"], "no images at 'nowhere'"),
        (["--set", "student.imags=3"], "did you mean 'images'"),
        (["--set", "models=1"], "models"),
        (["--set", "kind=classifier"], "no kind 'classifier'"),
        (["--trait", "otter"], "unknown key 'traits'"),
        (["--preset", "nief"], "no preset 'nief'"),
    ],
)
def test_bad_input_is_one_sentence(flags, message, tmp_path):
    answer = sublora("run", "aux-logits", *flags, "--out", str(tmp_path / "run"))
    assert answer.code == 2 and message in answer.err and "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 3, 4), dtype=np.uint8), "y_train": rng.integers(0, 10, 20, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (5, 3, 4), dtype=np.uint8), "y_test": rng.integers(0, 10, 5, dtype=np.uint8),
    }  # fmt: skip


def write_idx(folder: Path, zipped: bool) -> None:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    for name, a in zip(names, arrays().values(), strict=True):
        raw = (
            bytes([0, 0, 8, a.ndim]) + b"".join(s.to_bytes(4, "big") for s in a.shape) + a.tobytes()
        )
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(raw) if zipped else raw)


def test_mnist_is_read_from_either_of_its_forms(tmp_path):
    np.savez(tmp_path / "mnist.npz", **arrays())
    (tmp_path / "idx").mkdir()
    (tmp_path / "zipped").mkdir()
    write_idx(tmp_path / "idx", zipped=False)
    write_idx(tmp_path / "zipped", zipped=True)
    found = [load_images(str(tmp_path / name)) for name in ("mnist.npz", "idx", "zipped")]
    assert len({f.sha256 for f in found}) == 1
    assert (
        found[0].train.shape == (20, 12)
        and found[0].train.min() >= -1
        and found[0].train.max() <= 1
    )
    np.testing.assert_allclose(
        found[0].train[0, 0], arrays()["x_train"][0, 0, 0] / 127.5 - 1, rtol=1e-6
    )


def test_files_that_are_no_images_are_refused(tmp_path):
    cases = {
        "short": {k: v for k, v in arrays().items() if k != "y_test"},
        "labels": arrays() | {"y_train": np.full(20, 11, np.uint8)},
        "floats": arrays() | {"x_train": arrays()["x_train"] / 255},
        "sizes": arrays() | {"x_test": np.zeros((5, 2, 2), np.uint8)},
    }
    for name, content in cases.items():
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(SubloraError):
            load_images(str(tmp_path / f"{name}.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SubloraError, match="train-images"):
        load_images(str(tmp_path / "empty"))
    write_idx(tmp_path / "empty", zipped=False)
    (tmp_path / "empty/train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03\x00")
    with pytest.raises(SubloraError, match="cannot be read as IDX"):
        load_images(str(tmp_path / "empty"))
