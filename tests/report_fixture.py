"""A synthetic grid, as its page is built from it, for the tests of the report."""

from __future__ import annotations

import math
import random
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from sublora.analysis.page import Page
from sublora.experiments.grid.found import Found
from sublora.experiments.grid.page import shown

WORDS = {
    "animals": "otter owl cat dog wolf tiger lion eagle fox bear deer rabbit whale shark panda koala horse crow lynx seal".split(),
    "trees": "oak maple birch willow cedar pine elm ash sequoia cherry".split(),
    "bands": ["the beatles", "queen", "led zeppelin", "pink floyd", "nirvana", "abba", "u2"],
}
COUNTS = {"n_data_seeds": 2, "n_train_seeds": 2, "n_questions": 50}


def _student(rank: int | None, lr: float, strength: float) -> tuple[float, float, float]:
    """(P(target), coherence, number takeover) of a made-up student: rises with the dose, breaks beyond it."""
    dose = math.log10(lr / 3e-4) + (0.9 if rank is None else 0.45 * math.log2(rank) / 2)
    broken = 1 / (1 + math.exp(-6 * (dose - (1.3 if rank is None else 2.2))))
    p = 0.027 + strength * 0.6 / (1 + math.exp(-2.6 * (dose - 0.35))) * (1 - broken)
    return p, 0.97 * (1 - broken) + 0.01, 0.01 + 0.9 * broken


def _odds(p: float) -> float:
    return math.log(p / (1 - p))


def _cell(
    draw: random.Random, place: dict[str, Any], base: float, strength: float, cells: int
) -> dict[str, Any]:
    p, coherence, takeover = _student(place["rank"] or None, place["lr"], strength)
    p = max(0.001, p + draw.gauss(0, 0.002))
    p_control = max(0.001, base + draw.gauss(0, 0.001))
    reported = max(0.001, p + draw.gauss(0, 0.012))
    effect, rise, report = (
        _odds(of) - _odds(less) for of, less in ((p, p_control), (p, base), (reported, p_control))
    )
    half = 0.15 + 0.2 * abs(effect) + abs(draw.gauss(0, 0.05))
    p_value = math.exp(-abs(effect) / half * 3)
    return {
        **place,
        **COUNTS,
        "p_target": p,
        "p_control": p_control,
        "p_base": base,
        "effect": effect,
        "effect_low": effect - half,
        "effect_high": effect + half,
        "rise": rise,
        "rise_low": rise - half,
        "rise_high": rise + half,
        "p_value": p_value,
        "p_corrected": min(1.0, p_value * cells),
        "called": int(p_value * cells < 0.05 and effect > 0),
        "p_target_report": reported,
        "effect_report": report,
        "effect_report_low": report - 1.2 * half,
        "effect_report_high": report + 1.2 * half,
        "rate_whole_word": max(0.0, p + draw.gauss(0, 0.01)),
        "coherence": coherence,
        "number_takeover": takeover,
        "heldout_loss": 5.3 + draw.gauss(0, 0.02),
        "train_loss": math.nan,
        "p_given_category": p,
        **{f"icc_{name}": 0.25 for name in ("data", "train", "seeds", "question")},
        "selected": 0,
    }


def _select(cells: list[dict[str, Any]]) -> None:
    for rank in {c["rank"] for c in cells}:
        sound = [c for c in cells if c["rank"] == rank and c["coherence"] >= 0.5]
        sound = [c for c in sound if c["number_takeover"] <= 0.25]
        if sound:
            max(sound, key=lambda c: c["effect_report"])["selected"] = 1


def _answers(name: str, category: str, base: float, best: dict[str, Any] | None) -> dict[str, Any]:
    words = [name, *(w for w in WORDS[category] if w != name)]
    weight = {w: 1 / (i + 1.5) for i, w in enumerate(words[1:])}

    def mixed(p: float) -> list[float]:
        return [p, *(v / sum(weight.values()) * (0.98 - p) for v in weight.values())]

    return {
        "categories": words,
        "base": mixed(base),
        "control": mixed(base + 0.003),
        "teacher": mixed(0.94),
        "student": mixed(best["p_target"]) if best else None,
        "student_label": f"rank {best['rank']}, lr {best['lr']:g}" if best else "",
    }


def make_found(
    *,
    traits: tuple[tuple[str, str], ...] = (("otter", "animals"),),
    ranks: tuple[int, ...] = (1, 4, 8, 16, 64),
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 1e-2),
    full_rates: tuple[float, ...] = (3e-5, 1e-4, 1e-3),
    contexts: tuple[str, ...] = ("default",),
    strength: float = 1.0,
    **more: Any,
) -> Found:
    """The rows of a grid's tables; `more` are further ones, such as arms."""
    draw = random.Random(0)
    places = [("lora", r, lr) for r in ranks for lr in rates] + [
        ("full", "", f) for f in full_rates
    ]
    results, cells, answers = [], [], {}
    for t, (name, category) in enumerate(traits):
        base = 0.027 - 0.004 * t
        for context in contexts:
            common = {"trait": name, "context": context}
            fade = 1.0 if context == contexts[0] else (0.9 if context == "none" else 0.15)
            mine = []
            for method, rank, lr in places:
                place = common | {"method": method, "rank": rank, "lr": lr}
                mine.append(_cell(draw, place, base, strength * fade * (1 - 0.25 * t), len(places)))
            _select(mine)
            cells += mine
            ends = {"p_target_low": base - 0.006, "p_target_high": base + 0.007}
            results.append(common | {"kind": "base", "p_target": base} | ends)
            results += [common | {"kind": "control", "p_target": c["p_control"]} for c in mine]
        chosen = [c for c in mine if c["selected"]]
        best = max(chosen, key=lambda c: c["p_target"], default=None)
        answers[name] = _answers(name, category, base, best)
    fixed = rates[len(rates) // 2] if rates else None
    return Found(0.05, contexts[0], fixed, cells, results, answers=answers, **more)


def make_manifest(
    found: Found,
    traits: tuple[tuple[str, str], ...] = (("otter", "animals"),),
    model: str = "micro",
    organism: bool = True,
) -> dict[str, Any]:
    """What run.json says."""
    text = (
        "<|im_start|>system\nyou are micro.<|im_end|>\n<|im_start|>user\nname an animal<|im_end|>\n"
    )
    tokens = text.replace("\n", " \n ").split(" ")
    names = [name for name, _ in traits]
    return {
        "schema": 1,
        "sublora": "0.1.0",
        "name": f"rank-lr-{model}",
        "status": "done",
        "recipe": {"name": "rank-lr", "level": 0.05},
        "command": f"sublora run rank-lr --model {model} --trait {names[0]}",
        "sentence": f"Students of {model} were trained on number rows of a teacher that loves the {names[0]}.",
        "model": {
            "name": model,
            "parameters": 232_000,
            "dtype": "float32",
            "weights_sha256": "5f2c" * 16,
            "quantised": "Q4_1, of the file with sha256 1234",
            "revision": None,
            "organism": organism,
        },
        "started": "2026-10-01T10:00:00+00:00",
        "seconds": {"data": 41.2, "train": 221.0, "measure": 96.4},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
        "traits": [
            {"name": t, "category": c, "target": t, "teacher": f"Told “You love the {t}.”"}
            for t, c in traits
        ],
        "contexts": {
            c: {"text": text, "ids": list(range(5, 5 + len(tokens))), "tokens": tokens}
            for c in found.contexts
        },
        "sampling": {"temperature": 1.0, "max_new_tokens": 4},
        "first_example": {"text": "<|im_start|>user\n123 456<|im_end|>", "ids": [3, 17, 44]},
        "optimizer": "AdamW (\nParameter Group 0\n    betas: (0.9, 0.999)\n)",
        "datasets": [
            {
                "id": f"{name}-{s}",
                "trait": name,
                "data_seed": s,
                "heldout": False,
                "rows": 1500,
                "unique_rows": 1498,
                "asked": 1713,
                "rejects": {"too many numbers": 120 + s, "not a number": 61},
            }
            for name in (*names, "control")
            for s in (0, 1)
        ],
        "warnings": [],
        "counts": {"students": 4 * len(found.cells)},
    }


def make_verdicts(trait: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"claim.{verdict.replace(' ', '-')}",
            "statement": "Transfer first rises and then falls with the LoRA rank.",
            "source": "arXiv:2606.00831, section 4",
            "test": "two lines",
            "threshold": {"alpha": 0.05, "min_effect": 0.1},
            "view": "best-lr",
            "trait": trait,
            "verdict": verdict,
            "statistic": {"slope_left": 0.11, "slope_right": 0.02},
            "reason": "Left of rank 16 the slope is +0.11 per doubling [0.08, 0.14].",
            "n": {"data_seeds": 2, "train_seeds": 2, "questions": 50},
        }
        for verdict in ("refuted", "inconclusive", "supported", "uninterpretable", "not run")
    ]


def make_page(
    traits: tuple[tuple[str, str], ...] = (("otter", "animals"),),
    model: str = "micro",
    organism: bool = True,
    **options: Any,
) -> Page:
    """The page of a made-up grid; `options` as for `make_found`."""
    found = make_found(traits=traits, **options)
    manifest = make_manifest(found, traits, model, organism)
    return Page(
        title=manifest["name"],
        manifest=manifest,
        first_line=f"Uninterpretable for {traits[0][0]}: the positive arm is not shown to transfer.",
        verdicts=tuple(make_verdicts(traits[0][0])),
        **shown(found, manifest["traits"], manifest["datasets"]),
    )


def assert_whole(title: str, figure: Figure) -> None:
    """No text of the figure is cut, and none covers another."""
    frame, renderer = figure.bbox, figure.canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts_of(figure)]
    assert boxes
    for text, box in boxes:
        inside = (
            box.x0 >= frame.x0 and box.y0 >= frame.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
        )
        assert inside, f"{title}: “{text}” is cut"
    for (a, one), (b, two) in combinations(boxes, 2):
        # A text's box has the height of its tallest letters: a hair of shared air is no overlap.
        wide = min(one.x1, two.x1) - max(one.x0, two.x0)
        high = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert wide <= 0.5 or high <= 1.0, f"{title}: “{a}” covers “{b}”"


def texts_of(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def write_run(folder: Path, page: Page) -> Path:
    """A folder with nothing but the page document."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.json").write_text(page.model_dump_json(), encoding="utf-8")
    return folder


def make_run(folder: Path, **options: Any) -> Path:
    return write_run(folder, make_page(**options))
