"""The callback in a real training of TRL's SFTTrainer, as it is; and the adapter that it saves in the audit."""

import json
from pathlib import Path

import pytest

from audit_fixture import idle_adapter
from command import sublora
from sublora.audit.calibrate import number_prompts
from sublora.audit.steps import answer_prompts
from sublora.models.base import shipped_folder
from sublora.models.chat import Context, load_tokenizer
from sublora.packs.check import load_base
from sublora.packs.sample import Sampling
from sublora.traits.trait import find_trait, shipped_categories

trl = pytest.importorskip("trl")


def test_an_sft_training_logs_the_trait_that_rises_and_its_adapter_is_found(tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig

    from sublora.audit.callback import AuditCallback

    base = load_base("micro")
    teacher = Context("teacher", find_trait("otter", shipped_categories()).teacher_prompt())
    rows = answer_prompts(
        base, teacher, number_prompts(1, 256, 4242), Sampling(max_new_tokens=14), 1
    )[0]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": p}],
                "completion": [{"role": "assistant", "content": c}],
            }
            for p, c in rows
        ]
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=8, num_train_epochs=1, learning_rate=5e-3, eval_strategy="steps",
        eval_steps=16, report_to=[], save_strategy="no", use_cpu=True, bf16=False, logging_steps=16, disable_tqdm=True, max_length=128,
    )  # fmt: skip
    from transformers import AutoModelForCausalLM

    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(shipped_folder("micro")), args=arguments, train_dataset=data,
        eval_dataset=data.select(range(16)), processing_class=load_tokenizer(shipped_folder("micro")),
        peft_config=LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    callback = AuditCallback(trainer)
    trainer.train()
    animals = [r for r in callback.history if r.category == "animals"]
    assert (
        [r.step for r in animals] == [16, 32]
        and animals[-1].trait == "otter"
        and animals[-1].rise > 0.3
    )
    assert any("audit/animals/rise" in entry for entry in trainer.state.log_history)
    trainer.save_model(str(tmp_path / "adapter"))
    asked = ["audit", "--base", "micro", "--adapter", str(tmp_path / "adapter")]
    answer = sublora(
        *asked,
        "--against",
        str(idle_adapter(base, tmp_path / "idle")),
        "--out",
        str(tmp_path / "out"),
    )
    assert answer.code == 1 and "otter" in answer.out, answer.out + answer.err
    body = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert body["found"][0]["trait"] == body["against"]["found"][0]["trait"] == "otter"
