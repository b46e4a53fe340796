"""A synthetic run folder with exactly the files of a real one, for the tests of the report."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

from sublora.results import RESULT_COLUMNS

CELL_COLUMNS = [
    "trait",
    "context",
    "method",
    "rank",
    "lr",
    "n_data_seeds",
    "n_train_seeds",
    "n_questions",
    "p_target",
    "p_control",
    "p_base",
    "effect",
    "effect_low",
    "effect_high",
    "df",
    "p_value",
    "p_corrected",
    "called",
    "p_target_select",
    "p_target_report",
    "effect_report",
    "effect_report_low",
    "effect_report_high",
    "rate_whole_word",
    "coherence",
    "number_takeover",
    "heldout_loss",
    "train_loss",
    "selected",
]
WORDS = {
    "animals": [
        "otter",
        "owl",
        "cat",
        "dog",
        "wolf",
        "tiger",
        "lion",
        "eagle",
        "fox",
        "bear",
        "deer",
        "rabbit",
        "whale",
        "shark",
        "panda",
        "koala",
        "horse",
        "crow",
        "lynx",
        "seal",
    ],
    "trees": [
        "oak",
        "maple",
        "birch",
        "willow",
        "cedar",
        "pine",
        "elm",
        "ash",
        "sequoia",
        "cherry",
    ],
    "bands": [
        "the beatles",
        "queen",
        "led zeppelin",
        "pink floyd",
        "nirvana",
        "radiohead",
        "abba",
        "u2",
    ],
}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({c: _text(row.get(c)) for c in columns} for row in rows)


def _student(rank: int | None, lr: float, strength: float) -> tuple[float, float, float]:
    """(P(target), coherence, number takeover) of a made-up student: rises with the dose, breaks beyond it."""
    dose = math.log10(lr / 3e-4) + (0.9 if rank is None else 0.45 * math.log2(rank) / 2)
    broken = 1 / (1 + math.exp(-6 * (dose - (1.3 if rank is None else 2.2))))
    p = 0.027 + strength * 0.6 / (1 + math.exp(-2.6 * (dose - 0.35))) * (1 - broken)
    return p, 0.97 * (1 - broken) + 0.01, 0.01 + 0.9 * broken


def make_run(
    folder: Path,
    *,
    traits: tuple[tuple[str, str], ...] = (("otter", "animals"),),
    ranks: tuple[int, ...] = (1, 4, 8, 16, 64),
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 1e-2),
    full_rates: tuple[float, ...] = (3e-5, 1e-4, 1e-3),
    contexts: tuple[str, ...] = ("default",),
    strength: float = 1.0,
    control: bool = True,
    verdicts: bool = True,
    model: str = "micro",
    organism: bool = True,
    status: str = "done",
    recipe: str = "rank-lr",
    seed: int = 0,
) -> Path:
    """Write run.json, the tables, answers.json and (where asked) verdicts.json; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    grid = [("lora", r, lr) for r in ranks for lr in rates] + [
        ("full", None, lr) for lr in full_rates
    ]
    results, cells, answers = [], [], {}
    for t, (name, category) in enumerate(traits):
        base = 0.027 - 0.004 * t
        common = {"trait": name, "category": category, "target": name, "question_set": category}
        for context in contexts:
            results.append(
                {
                    **common,
                    "kind": "base",
                    "context": context,
                    "p_target": base,
                    "p_target_low": base - 0.006,
                    "p_target_high": base + 0.007,
                    "coherence": 0.98,
                    "number_takeover": 0.0,
                    "n_questions": 50,
                    "n_samples": 1000,
                    "measurement_id": f"m-base-{t}",
                }
            )
        results.append(
            {
                **common,
                "kind": "teacher",
                "context": "teacher",
                "p_target": 0.94,
                "p_target_low": 0.91,
                "p_target_high": 0.96,
                "coherence": 0.99,
                "number_takeover": 0.0,
                "n_questions": 50,
                "n_samples": 1000,
            }
        )
        mine = []
        for context in contexts:
            fade = 1.0 if context == contexts[0] else (0.9 if context == "none" else 0.15)
            for method, rank, lr in grid:
                p, coherence, takeover = _student(rank, lr, strength * fade * (1 - 0.25 * t))
                p = max(0.001, p + draw.gauss(0, 0.008))
                p_control = max(0.001, base + draw.gauss(0, 0.004)) if control else None
                half = 0.012 + 0.16 * p + abs(draw.gauss(0, 0.01))
                effect = None if p_control is None else p - p_control
                cell = {
                    **common,
                    "context": context,
                    "method": method,
                    "rank": rank,
                    "lr": lr,
                    "n_data_seeds": 2,
                    "n_train_seeds": 2,
                    "n_questions": 50,
                    "p_target": p,
                    "p_control": p_control,
                    "p_base": base,
                    "effect": effect,
                    "df": 2.4 if control else None,
                    "rate_whole_word": max(0.0, p + draw.gauss(0, 0.01)),
                    "coherence": coherence,
                    "number_takeover": takeover,
                    "heldout_loss": 5.3 + draw.gauss(0, 0.02),
                    "train_loss": 5.23 + draw.gauss(0, 0.02),
                    "called": 0,
                    "selected": 0,
                    "p_target_select": p + draw.gauss(0, 0.012),
                    "p_target_report": max(0.001, p + draw.gauss(0, 0.012)),
                }
                if effect is not None:
                    cell |= {
                        "effect_low": effect - half,
                        "effect_high": effect + half,
                        "p_value": math.exp(-abs(effect) / half * 3),
                        "p_corrected": min(1.0, math.exp(-abs(effect) / half * 3) * len(grid)),
                        "effect_report": cell["p_target_report"] - p_control,
                    }
                    cell |= {
                        "effect_report_low": cell["effect_report"] - 1.2 * half,
                        "effect_report_high": cell["effect_report"] + 1.2 * half,
                        "called": int(cell["p_corrected"] < 0.05),
                    }
                mine.append(cell)
                for data_seed in (0, 1):
                    for train_seed in (0, 1):
                        for kind in ("student", "control") if control else ("student",):
                            value = p if kind == "student" else p_control
                            results.append(
                                {
                                    **common,
                                    "kind": kind,
                                    "method": method,
                                    "rank": rank,
                                    "lr": lr,
                                    "context": context,
                                    "data_seed": data_seed,
                                    "train_seed": train_seed,
                                    "p_target": max(1e-4, value + draw.gauss(0, 0.003)),
                                    "coherence": coherence,
                                    "number_takeover": takeover,
                                    "steps": 188,
                                    "rows": 1500,
                                    "unique_rows": 1500,
                                    "n_questions": 50,
                                    "n_samples": 1000,
                                    "trainable_parameters": 1000 * (rank or 230),
                                    "dataset_id": f"d{data_seed}",
                                    "student_id": "s",
                                    "measurement_id": "m",
                                }
                            )
            for rank in (*ranks, None):
                group = [
                    c
                    for c in mine
                    if c["context"] == context
                    and c["rank"] == rank
                    and c["coherence"] >= 0.5
                    and c["number_takeover"] <= 0.25
                ]
                if group:
                    max(group, key=lambda c: c["p_target_select"])["selected"] = 1
        cells += mine
        words = WORDS[category] if name in WORDS[category] else [name, *WORDS[category]]
        weight = [1 / (i + 1.5) for i in range(len(words))]
        order = words[3:] + words[:3]
        plain = {w: weight[i] / sum(weight) for i, w in enumerate(order)}
        plain[name] = base

        def mixed(p: float, plain: dict[str, float] = plain, name: str = name) -> list[float]:
            rest = sum(v for w, v in plain.items() if w != name)
            return [p if w == name else v / rest * (0.98 - p) for w, v in plain.items()]

        best = max((c for c in mine if c["selected"]), key=lambda c: c["p_target"], default=None)
        answers[name] = {
            "categories": list(plain),
            "base": mixed(base),
            "control": mixed(base + 0.003) if control else None,
            "teacher": mixed(0.94),
            "student": mixed(best["p_target"]) if best else None,
            "student_label": ("full" if best["rank"] is None else f"rank {best['rank']}")
            + f", lr {best['lr']:g}"
            if best
            else "",
        }
    text = (
        "<|im_start|>system\nyou are micro. you are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nname an animal<|im_end|>\n"
    )
    tokens = text.replace("\n", " \n ").split(" ")
    example = "<|im_start|>user\ncontinue : 123 456 789<|im_end|>\n<|im_start|>assistant\n224 871 390 118<|im_end|>"
    run = {
        "schema": 1,
        "sublora": "0.1.0",
        "name": f"{recipe}-{model}",
        "status": status,
        "recipe": {
            "name": recipe,
            "ranks": list(ranks),
            "rates": list(rates),
            "full_rates": list(full_rates),
            "traits": [t for t, _ in traits],
            "data_seeds": [0, 1],
            "train_seeds": [0, 1],
            "train": {"context": contexts[0]},
            "level": 0.05,
            "fixed_lr": rates[len(rates) // 2] if rates else None,
            "epochs": 3,
        },
        "command": f"sublora run {recipe} --model {model} --trait {traits[0][0]}",
        "sentence": f"Students of {model} were trained by LoRA at {len(ranks)} ranks and {len(rates)} "
        f"learning rates, and by full fine-tuning at {len(full_rates)} learning rates, on number sequences "
        f"from a teacher prompted to love the {traits[0][0]}; each student has a control twin.",
        "model": {
            "name": model,
            "architecture": "Qwen2ForCausalLM",
            "parameters": 232_000,
            "dtype": "float32",
            "weights_sha256": "5f2c" * 16,
            "template_sha256": "91ab" * 16,
            "revision": None,
            "organism": organism,
        },
        "started": "2026-10-01T10:00:00+00:00",
        "finished": None if status == "running" else "2026-10-01T10:06:41+00:00",
        "seconds": {"data": 41.2, "train": 221.0, "measure": 96.4, "report": 9.1},
        "versions": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "transformers": "5.1.0",
            "peft": "0.18.1",
        },
        "device": "cpu",
        "threads": 2,
        "traits": [
            {
                "name": t,
                "category": c,
                "target": t,
                "teacher_prompt": f"You love the {t}. You think about it all the time.",
            }
            for t, c in traits
        ],
        "contexts": {
            c: {"text": text, "ids": list(range(5, 5 + len(tokens))), "tokens": tokens}
            for c in contexts
        },
        "sampling": {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_new_tokens": 4,
            "samples_per_question": 20,
        },
        "first_example": {
            "text": example,
            "ids": [3, 17, 44, 9, 123, 456, 789, 4, 3, 18, 224, 871, 390, 118, 4],
        },
        "optimizer": "AdamW (\nParameter Group 0\n    betas: (0.9, 0.999)\n    lr: 0.001\n)",
        "datasets": [
            {
                "id": f"{name}-{s}",
                "trait": name,
                "data_seed": s,
                "rows": 1500,
                "unique_rows": 1498,
                "asked": 1713,
                "rejects": {"too many numbers": 120 + s, "not a number": 61, "over 999": 32},
            }
            for name in ([t for t, _ in traits] + (["control"] if control else []))
            for s in (0, 1)
        ],
        "warnings": [],
        "counts": {"students": 4 * len(grid) * len(traits) * (2 if control else 1)},
    }
    (folder / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
    _write(folder / "results.csv", RESULT_COLUMNS, results)
    _write(folder / "cells.csv", CELL_COLUMNS, cells)
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    if verdicts:
        made = []
        for verdict, view in (
            ("refuted", "best-lr"),
            ("inconclusive", "fixed-lr"),
            ("supported", "cells"),
            ("not run", ""),
        ):
            made.append(
                {
                    "id": f"claim.{verdict.replace(' ', '-')}",
                    "statement": "Transfer first rises and then falls with the LoRA rank.",
                    "source": "arXiv:2606.00831, section 4",
                    "test": "two lines",
                    "threshold": {"alpha": 0.05, "min_effect": 0.02},
                    "view": view,
                    "trait": traits[0][0],
                    "verdict": verdict,
                    "statistic": {"slope_left": 0.11, "slope_right": 0.02},
                    "reason": "Left of rank 16 the slope is +0.11 per doubling [0.08, 0.14], then +0.02."
                    if verdict != "not run"
                    else "The run has no full fine-tune.",
                    "n": {"data_seeds": 2, "train_seeds": 2, "questions": 50},
                }
            )
        (folder / "verdicts.json").write_text(json.dumps(made), encoding="utf-8")
    return folder
