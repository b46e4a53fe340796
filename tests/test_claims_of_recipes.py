"""Every shipped claim can be judged on what its recipes plan, under each of their presets, or is listed here with the reason why not."""

import itertools
from pathlib import Path

import pytest

from planned import make_plan
from sublora.analysis.claims import Claim
from sublora.analysis.contrast import fits, in_place
from sublora.analysis.effects import NotRun
from sublora.experiments.claims import load_claims
from sublora.experiments.document import read_document, shipped_recipes
from sublora.experiments.grid.effects import first_cell
from sublora.experiments.grid.elevation import DRIFT, OTHERS
from sublora.experiments.grid.findings import asks_steerability, axes_of, labelled
from sublora.experiments.grid.grid import Grid
from sublora.experiments.grid.spread import LEAST_CELLS, LEAST_SEEDS
from sublora.experiments.kinds import open_recipe
from sublora.text import listed

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
CLAIMS = load_claims()
# of these the tests of the experiment show which names its results have
OTHER_KINDS = {
    "aux-logits", "aux-width", "cross-model", "in-context", "judged", "number-statistics", "one-step", "one-step-model",
}  # fmt: skip
TEXTS = {("paraphrase", "blank"), ("paraphrase", "small")}
FEW_ROWS = "no preset but feng has as many unique rows"
KNOWN = {
    (
        "feng-flat-with-unique-rows",
        "rank-lr",
        "micro nief blank cloud small soft small+soft",
    ): FEW_ROWS,
    ("feng-full-ft-transfers", "rank-lr", "micro nief blank cloud small soft small+soft"): FEW_ROWS,
    ("feng-full-ft-transfers", "full-ft", "micro nief blank cloud small soft small+soft"): FEW_ROWS,
}
UNTESTABLE = {(c, r, p): why for (c, r, ps), why in KNOWN.items() for p in ps.split()}


def opened(name: str, preset: str) -> Grid:
    texts = "data.carrier.prompts=" + str(Path(__file__))  # paraphrased texts are a user's own
    sets = [texts] if (name, preset) in TEXTS else []
    # its traits are chosen by a tokenizer, which smollm2 would have to be fetched for
    model = "micro" if preset.startswith("small") else None
    recipe = open_recipe(name, preset=preset, sets=sets, model=model)
    assert isinstance(recipe, Grid)
    return recipe


def presets_of(recipe: str) -> list[str]:
    import yaml

    found = {}
    name = recipe
    while name:
        text = yaml.safe_load(shipped_recipes()[name].read_text("utf-8"))
        found |= {k: v for k, v in (text.get("presets") or {}).items() if k not in found}
        name = text.get("extends") if text.get("extends") in shipped_recipes() else None
    return ["micro", *(k for k, v in found.items() if v is not None and k != "micro")]


PAIRS = [(r, p) for r in shipped_recipes() if r not in OTHER_KINDS for p in presets_of(r)]


def planned_effects(plan) -> list[dict]:
    """The labels of all effects that a grid's plan comes to, as far as the plan knows them."""
    recipe, trait = plan.recipe, plan.traits[0]
    mine = [s for s in plan.students if trait.name in s.twins]
    out = [
        {"quantity": "transfer", "context": context, "condition": condition, **dict(labels)}
        for labels in dict.fromkeys(tuple(s.labels.items()) for s in mine)
        for context in recipe.measure.contexts
        for condition in ("", *recipe.measure.conditions)
    ]
    groups = labelled(plan, trait)
    of_students = ["loss gap", "gradient ratio"] if plan.readings["probe"] else []
    of_students += ["cosine", "own cosine"] if recipe.vectors.students else []
    out += [
        {**axes_of(plan, members, what), "name": f"{what}: {label}"}
        for label, members in groups
        for what in of_students
    ]
    if asked := recipe.measure.asked.get("gradients"):
        out += [
            {"quantity": what, "rows": n, "name": f"{what}: {n} rows"}
            for n in asked.rows
            for what in ("gradient cosine", "above chance")
        ]
    names = [
        f"teacher: {m.condition or 'prompted'}" for m in plan.measures if m.teacher == trait.name
    ]
    names += (
        ["share of tokens, default", "P_student(its choice), default"] if plan.divergences else []
    )
    names += ["steerability: correlation", "steerability: AUC"] if asks_steerability(plan) else []
    if len(groups) >= LEAST_CELLS:
        names += [f"{x} loss: correlation with transfer" for x in ("held-out", "training")]
    seeds = min(len(set(recipe.data.seeds)), len(set(recipe.train.seeds)))
    if recipe.train.pairing == "crossed" and seeds >= LEAST_SEEDS:
        names += ["variance between data seeds - between training seeds"]
    if len(plan.traits) > 1:  # the matrix of students by words
        group = {"group": "diagonal elevation, nats"}
        out += [group | {"name": name} for name in ("all", "least with one left out")]
        out += [{"group": DRIFT, "name": OTHERS}]
    return out + [{"name": name} for name in names]


def fault(claim: Claim, plan) -> str | None:
    """Why a claim cannot be judged on a plan."""
    if claim.unique_rows and plan.recipe.data.rows < claim.unique_rows:
        return "too few rows"
    if claim.reads != "effects":
        return grid_fault(claim, plan)
    labels = planned_effects(plan)
    patterns = [p for p in (claim.of, getattr(claim.contrast, "against", None)) if p is not None]
    chosen = []
    try:
        for pattern in patterns:
            wanted = in_place(pattern, labels)
            chosen.append([one for one in labels if fits(wanted, one)])
    except NotRun as error:
        return str(error)
    if not all(chosen):
        return f"nothing planned fits {claim.of}"
    for pattern, some in zip(patterns, chosen, strict=True):
        for axis, values in pattern.items():
            if axis == "condition":  # a claim of two recipes names the conditions of both
                continue
            if isinstance(values, tuple) and not set(values) <= {one.get(axis) for one in some}:
                return f"not all of {axis} {listed(list(map(str, values)))} are planned"
    if len(chosen) == 2 and chosen[0] == chosen[1]:
        return "both sides are the same students"
    if claim.test == "hard_gate" and len(claim.of["context"]) < 3:
        return "a series of fewer than three contexts"
    return None


def grid_fault(claim: Claim, plan) -> str | None:
    recipe, first = plan.recipe, first_cell(plan)
    labels = [s.labels for s in plan.students if s.twins and first(s.labels)]
    lora = {(one["rank"], one["lr"]) for one in labels if one["method"] == "lora"}
    full = {one["lr"] for one in labels if one["method"] == "full"}
    ranks, lrs = {r for r, _ in lora}, {lr for _, lr in lora}
    view, shape = (
        claim.rule.view,
        claim.test in ("inverted_u", "monotone_decline", "transfer_flat_in_rank"),
    )
    if view == "full" and not full:
        return "no full fine-tune"
    if view == "fixed-lr" and {r for r, lr in lora if lr == recipe.fixed_lr} != ranks:
        return "no rate that all ranks share"
    if view == "best-lr" and len(lrs) < 2:
        return "one learning rate"
    if (shape or claim.test == "best_lr_falls_with_rank") and len(ranks) < 3:
        return "fewer than three ranks"
    if claim.test == "best_lr_falls_with_rank" and len(lrs) < 3:
        return "fewer than three rates"
    if claim.test == "incoherent_at_lora_lr" and recipe.fixed_lr not in full:
        return "no full fine-tune at the shared rate"
    if claim.test == "peaks_differ" and len(plan.traits) < 2:
        return "one trait"
    return None


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_claims_are_testable_on_what_their_recipe_plans(name, preset):
    recipe = opened(name, preset)
    plan = make_plan(recipe, MODEL, 60.0)
    mine = [c for c in CLAIMS if name in c.recipes]
    assert mine
    faults = {(c.id, name, preset): why for c in mine if (why := fault(c, plan))}
    known = {key for key in UNTESTABLE if key[1:] == (name, preset)}
    assert faults.keys() == known, faults


def test_statements_name_no_number_that_a_preset_changes():
    """A rank, a rate, or a count of rows and epochs in a statement is false under the next preset."""
    for claim in CLAIMS:
        words = claim.statement.split()
        pairs = itertools.pairwise(words)
        said = [
            f"{a} {b}"
            for a, b in pairs
            if (b.strip(",.") in ("rows", "epochs", "steps") and a.isdigit())
            or (a.lower() == "rank" and b.strip(",.").isdigit())
        ]
        assert not said, claim.id


def test_variants_say_their_own_rows_and_epochs():
    for name, preset in PAIRS:
        recipe = opened(name, preset)
        for label, variant in recipe.variants.items():
            if label.startswith("step "):
                assert label == f"step {variant.step}"
            if "epoch" in label:
                rows, epochs = (
                    variant.rows or recipe.data.rows,
                    variant.epochs or recipe.train.epochs,
                )
                assert label.startswith((f"{rows} rows, {epochs} ", f"{rows:,} rows, {epochs} ")), (
                    label
                )


def test_every_claim_says_where_its_threshold_comes_from():
    assert all(c.threshold_from for c in CLAIMS) and len({c.threshold_from for c in CLAIMS}) > 10
    assert {r for c in CLAIMS for r in c.recipes} == set(shipped_recipes())
    assert {c.id for c in CLAIMS if c.no_leak} == {"cloud-code", "cloud-cot", "blank-paraphrase"}
    assert read_document("rank-lr").preset == "micro"
