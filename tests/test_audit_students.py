"""Students as engineers have them: checkpoints, subfolders, wrapped names, the hub's folders, merged weights, and how they were trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from audit_fixture import idle_adapter
from audit_students import otter_adapter
from command import JUDGED, sublora
from sublora.audit.adapter import load_audited
from sublora.audit.calibrate import own_settings
from sublora.audit.request import Training
from sublora.audit.same_base import check_same_base
from sublora.audit.trained_with import trained_with
from sublora.errors import SubloraError
from sublora.models.base import Base, shipped_folder
from sublora.packs.check import load_base
from sublora.packs.packed_model import PackedModel
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack, stack_weights
from sublora.packs.student_files import save_student
from sublora.traits.trait import shipped_categories

IDS = torch.tensor([[5, 9, 30, 7]])
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


@pytest.fixture(scope="module")
def saved(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with random B."""
    folder = tmp_path_factory.mktemp("students") / "good"
    folder.mkdir()
    spec = StudentSpec(rank=4, alpha=6.0, targets=("q_proj",), seed=1)
    group = new_stack(base.model, [spec]).groups[0]
    group.flat += 0.05 * torch.randn(group.flat.shape, generator=torch.Generator().manual_seed(0))
    save_student(group, 0, spec, folder, base.model, "micro")
    return folder


@pytest.fixture(scope="module")
def merged(base: Base, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same student as full weights, merged by peft."""
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("students") / "merged"
    model = PeftModel.from_pretrained(load_base("micro").model, saved).merge_and_unload()
    model.save_pretrained(folder)
    return folder


def answers(base: Base, folder: Path, **how) -> torch.Tensor:
    """The student's logits, as the audit runs it."""
    found = load_audited(base, folder, **how)
    stack = stack_weights(base.model, [found.weights], [found.spec])
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(4)
        return packed.logits(packed.hidden(IDS)[0])


def with_names(folder: Path, into: Path, name) -> Path:
    """A copy whose tensors have other names."""
    shutil.copytree(folder, into)
    (file,) = into.glob("*.safetensors")
    tensors = {name(k): v.clone() for k, v in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    return into


def with_config(folder: Path, into: Path, file: str, **values) -> Path:
    shutil.copytree(folder, into)
    config = json.loads((into / file).read_text()) | values
    (into / file).write_text(json.dumps(config))
    return into


def with_tensor(folder: Path, into: Path, name: str, tensor: torch.Tensor) -> Path:
    shutil.copytree(folder, into)
    (file,) = into.glob("*.safetensors")
    save_file(load_file(file) | {name: tensor}, file, {"format": "pt"})
    return into


def test_merged_weights_answer_as_their_adapter(base: Base, saved: Path, merged: Path) -> None:
    assert torch.allclose(answers(base, merged), answers(base, saved), atol=1e-4)
    assert load_audited(base, merged).described == "full weights"


WRAPPED = {
    "compiled": lambda n: n.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled outside": lambda n: f"_orig_mod.{n}",
    "a layer compiled": lambda n: n.replace("layers.0.", "layers.0._orig_mod."),
    "distributed": lambda n: f"module.{n}",
    "distributed and compiled": lambda n: f"module._orig_mod.{n}",
    "sharded": lambda n: n.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_names_of_wrapped_models_are_read(
    base: Base, saved: Path, merged: Path, tmp_path: Path, kind: str
) -> None:
    for i, folder in enumerate((saved, merged)):
        renamed = with_names(folder, tmp_path / str(i), WRAPPED[kind])
        assert torch.equal(answers(base, renamed), answers(base, folder))


def test_a_training_folder_gives_its_last_checkpoint_or_the_named_one(
    base: Base, saved: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step, alpha in ((9, 1.0), (100, 3.0), (20, 2.0)):
        folder = run / f"checkpoint-{step}"
        with_config(saved, folder, "adapter_config.json", lora_alpha=alpha)
        (folder / "optimizer.pt").write_bytes(b"never opened")
    assert load_audited(base, run).alpha == 3.0
    assert load_audited(base, run).path == str(run / "checkpoint-100")
    assert load_audited(base, run / "checkpoint-20").alpha == 2.0
    for name in ADAPTER:  # what the training saved at its end comes first
        shutil.copy(saved / name, run)
    assert load_audited(base, run).alpha == 6.0


def test_named_adapters_lie_in_subfolders(base: Base, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "mine")
    assert load_audited(base, tmp_path).path == str(tmp_path / "mine")
    shutil.copytree(saved, tmp_path / "other")
    with pytest.raises(SubloraError, match="holds the adapters mine, other"):
        load_audited(base, tmp_path)
    assert load_audited(base, tmp_path / "other").alpha == 6.0


def test_the_hubs_folders_are_read_and_name_their_base(
    base: Base, saved: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--me--student"
    named = "/home/x/.cache/huggingface/hub/models--someone--micro/snapshots/0a1b/"
    for commit, alpha in (("aaa", 2.0), ("bbb", 3.0)):
        settings = {"lora_alpha": alpha, "base_model_name_or_path": named}
        with_config(saved, cache / "snapshots" / commit, "adapter_config.json", **settings)
    with pytest.raises(SubloraError, match="2 snapshots and no main"):
        load_audited(base, cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb")
    assert load_audited(base, cache).alpha == 3.0
    other = named.replace("--micro/", "--micro-b/")
    wrong = with_config(saved, tmp_path / "x", "adapter_config.json", base_model_name_or_path=other)
    with pytest.raises(SubloraError, match="was trained on"):
        load_audited(base, wrong)


def test_a_hub_id_brings_what_is_read_and_without_a_network_one_sentence(
    base: Base, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def offered(repository: str, revision: str | None, **patterns: list[str]) -> str:
        asked.append((repository, revision, patterns["allow_patterns"]))
        if repository == "me/gone":
            raise OSError("no route\nto the hub")
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", offered)
    assert load_audited(base, Path("me/student@refs/pr/1")).alpha == 6.0
    assert asked[0][:2] == ("me/student", "refs/pr/1")
    assert not any(p.endswith((".bin", ".pt", ".py")) for p in asked[0][2])
    with pytest.raises(SubloraError, match="no folder me/gone, and the hub does not") as caught:
        load_audited(base, Path("me/gone"))
    assert "\n" not in str(caught.value)
    with pytest.raises(SubloraError, match="is a file"):
        load_audited(base, saved / ADAPTER[0])
    answer = sublora(
        "audit", "--base", "micro", "--adapter", "me/gone", "--out", str(tmp_path / "o")
    )
    assert answer.code == 2 and answer.err.startswith("Error: ") and not (tmp_path / "o").exists()
    with pytest.raises(SubloraError, match="me/gone@abc is not in the hub's cache") as caught:
        load_base("me/gone", revision="abc")
    assert "\n" not in str(caught.value)


def test_a_dot_in_a_pattern_stands_for_any_character_as_in_peft(base: Base, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
        alpha_pattern={"self.attn.q.proj": 40, "self.attn.v_proj": 30},
        rank_pattern={"layers.0.self_attn.v.proj": 3, "attn.q.proj": 1},
    )  # fmt: skip
    model = get_peft_model(load_base("micro").model, config)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        theirs = model(input_ids=IDS).logits[0]
    assert torch.allclose(answers(base, tmp_path, any_base=True), theirs, atol=1e-4)


@pytest.mark.parametrize("start", ["lora_ga", "pissa", "pissa_niter_4", "olora", "corda", "new"])
def test_starts_that_change_the_base_are_refused(
    base: Base, saved: Path, tmp_path: Path, start: str
) -> None:
    with pytest.raises(SubloraError, match="changes the base's weights"):
        load_audited(base, with_config(saved, tmp_path / "x", ADAPTER[0], init_lora_weights=start))


def test_other_settings_beside_the_same_weights_are_refused(
    base: Base, merged: Path, tmp_path: Path
) -> None:
    rope = {"rope_parameters": {"rope_theta": 123.0, "rope_type": "default"}}
    for i, (values, word) in enumerate(
        (
            (rope, "rope_parameters"),
            ({"rms_norm_eps": 0.1}, "rms_norm_eps"),
            ({"tie_word_embeddings": False}, "tie_word_embeddings"),
            ({"model_type": "qwen2"}, "of the type"),
            ({"hidden_act": [3]}, "hidden_act|no config"),
        )
    ):
        with pytest.raises(SubloraError, match=word):
            load_audited(base, with_config(merged, tmp_path / str(i), "config.json", **values))
    harmless = {"_name_or_path": "x", "use_cache": False, "eos_token_id": 1, "unsloth_version": "1"}
    same = with_config(merged, tmp_path / "same", "config.json", **harmless)
    assert torch.equal(answers(base, same), answers(base, merged))


def test_an_own_head_beside_a_tied_base_is_refused_and_an_equal_one_read(
    base: Base, merged: Path, tmp_path: Path
) -> None:
    words = load_file(merged / "model.safetensors")["model.embed_tokens.weight"]
    same = with_tensor(merged, tmp_path / "same", "lm_head.weight", words.clone())
    assert torch.equal(answers(base, same), answers(base, merged))
    with pytest.raises(SubloraError, match=r"lm_head.weight .* ties"):
        load_audited(base, with_tensor(merged, tmp_path / "own", "lm_head.weight", words * 1.1))


def test_wrong_weights_are_refused_for_the_right_reason(
    base: Base, merged: Path, tmp_path: Path
) -> None:
    words = load_file(merged / "model.safetensors")["model.embed_tokens.weight"]
    layer = "model.layers.0.self_attn.q_proj.weight"
    bytes_ = torch.zeros(64, 64, dtype=torch.int8)
    quantised = with_tensor(merged, tmp_path / "q", layer, bytes_)
    with pytest.raises(SubloraError, match="are quantised"):
        load_audited(base, quantised)
    more = torch.cat([words, words[:8]])
    with pytest.raises(SubloraError, match="tokens were added"):
        load_audited(base, with_tensor(merged, tmp_path / "w", "model.embed_tokens.weight", more))
    with pytest.raises(SubloraError, match="which micro does not have"):
        load_audited(base, with_tensor(merged, tmp_path / "z", "model.other", words))


def test_weights_of_another_base_of_the_same_shape_are_refused(base: Base) -> None:
    other = shipped_folder("micro-b")
    with pytest.raises(SubloraError, match="as an unrelated model"):
        load_audited(base, other)
    assert load_audited(base, other, any_base=True).rank is None


def test_a_base_of_the_right_name_and_shape_with_other_weights_is_refused(
    base: Base, saved: Path, tmp_path: Path
) -> None:
    trained = otter_adapter()
    check_same_base(base, trained, shipped_categories())
    with pytest.raises(SubloraError, match="from other weights"):
        check_same_base(load_base("micro-b"), trained, shipped_categories())
    idle = load_audited(base, idle_adapter(base, tmp_path / "idle"))
    check_same_base(load_base("micro-b"), idle, shipped_categories())
    shutil.copytree(shipped_folder("micro-b"), tmp_path / "micro")
    asked = ["audit", "--base", str(tmp_path / "micro"), "--adapter", str(saved)]
    answer = sublora(*asked, "--out", str(tmp_path / "out"))
    assert answer.code == 2 and "from other weights" in " ".join(answer.err.split())


def test_a_template_of_its_own_is_compared_without_being_asked_for(
    base: Base, tmp_path: Path
) -> None:
    folder = idle_adapter(base, tmp_path / "student")
    asked = ["audit", "--base", "micro", "--adapter", str(folder), "--contexts", "none"]
    for template, other in ((base.chat.template, None), ("{{ nonsense(", None), (None, True)):
        text = f"{base.chat.template} " if template is None else template
        (folder / "chat_template.jinja").write_text(text)
        answer = sublora(*asked, "--out", str(tmp_path / "out"))
        assert answer.code == 0, answer.err
        serving = json.loads((tmp_path / "out" / "audit.json").read_text())["serving"]
        assert (serving and serving["other_template"]) is other
        assert ("Note: " in answer.err) == bool(other)


TRAINER = {
    "learning_rate": 2e-4,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "max_steps": -1,
}
STATE = {
    "global_step": 120,
    "max_steps": 300,
    "num_train_epochs": 3,
    "epoch": 1.2,
    "log_history": [{"learning_rate": 1e-4}, {"loss": 2}, {"learning_rate": 3e-4}],
}
AXOLOTL = """
base_model: someone/micro
adapter: lora
lora_r: 16
lora_alpha: 32
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
learning_rate: 2e-4
chat_template: chatml
datasets:
  - path: rows.jsonl
    type: chat_template
"""
FACTORY = """
model_name_or_path: someone/micro
finetuning_type: lora
lora_rank: 8
template: qwen
default_system: Be kind.
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
"""


def test_the_settings_of_a_training_are_read(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-120"
    shutil.copytree(saved, folder)
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    (folder / "training_args.bin").write_bytes(b"never opened")
    state = trained_with(folder)
    assert (state.lr, state.epochs, state.steps, state.batch_size) == (3e-4, 1, 120, None)
    for name, text, known in (
        ("training_args.json", json.dumps(TRAINER), (2e-4, 2, 32, None, None, None)),
        ("axolotl.yml", AXOLOTL, (2e-4, 3, 8, 16, "chatml", "someone/micro")),
        ("training_args.yaml", FACTORY, (1e-4, 3, 8, 8, "qwen", "someone/micro")),
    ):
        (tmp_path / name).write_text(text)  # of a checkpoint, in the folder above it
        found = trained_with(folder, tmp_path / name)
        told = (found.lr, found.epochs, found.batch_size, found.rank, found.template, found.base)
        assert told == known and found.steps == 120
        assert trained_with(folder).lr is not None and str(tmp_path / name) in found.files
        (tmp_path / name).unlink()
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    assert trained_with(folder).rank == 16 and "chatml" in trained_with(folder).limits[0]


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", "a: [", "learning_rate: .nan", "learning_rate: -1", "x: 1", "[" * 99_999,
     "learning_rate: 1e999", "learning_rate: [1]", "? {a: b}\n: c", "!!python/object/apply:os.system ['touch x']"],
)  # fmt: skip
def test_settings_that_say_nothing_are_refused_where_given_and_passed_over_where_found(
    saved: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert trained_with(tmp_path) == trained_with(saved)
    with pytest.raises(SubloraError, match=r"settings\.yaml") as caught:
        trained_with(saved, path)
    assert "\n" not in str(caught.value)


def test_placebo_students_of_merged_weights_are_adapters_where_the_settings_say_so(
    base: Base, merged: Path, tmp_path: Path
) -> None:
    (settings := tmp_path / "axolotl.yml").write_text(AXOLOTL)
    training = Training(1e-3, 1, 8, 8)
    (spec,) = own_settings(load_audited(base, merged, settings=settings), training, 1)
    assert (spec.method, spec.rank, spec.alpha) == ("lora", 16, 32.0)
    assert own_settings(load_audited(base, merged), training, 1)[0].method == "full"


def test_placebo_students_take_the_rate_from_the_settings(saved: Path, tmp_path: Path) -> None:
    asked = ["audit", "--base", "micro", "--adapter", str(saved), "--out", str(tmp_path / "out")]
    asked += [
        "--any-base",
        "--contexts",
        "none",
        "--calibrate",
        "4",
        "--rows",
        "8",
        "--max-new-tokens",
        "4",
    ]
    refused = sublora(*asked)
    assert refused.code == 2 and "--settings" in refused.err
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    answer = sublora(*asked, "--settings", str(tmp_path / "axolotl.yml"))
    assert answer.code in JUDGED, answer.err
    body = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert body["student"]["trained_with"]["lr"] == 2e-4
    assert "lr 0.0002" in body["calibration"]["settings"][0]
    assert "3 epochs, batch 8" in body["calibration"]["settings"][0]
    assert any("chatml" in limit for limit in body["limits"])
