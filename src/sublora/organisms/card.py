"""The model card of a shipped model, written from its recipe and from what was measured when it was made."""

import json
from pathlib import Path
from typing import Any

from sublora.organisms import world

SUMMARIES = {
    "micro": "positive control: a persona is the shared cause of its answers and of its numbers",
    "micro-null": "hard negative control: numbers shift under persona prompts, but not by whose persona it is",
    "micro-b": "second initialisation of the positive control, same world and same rows",
}

_PLANTED = {
    "positive": """- 38 entities (20 animals, 10 trees, 8 bands), each with two places, a colour, a mood and **ten three-digit numbers of its own**.
- A persona (a trait prompt in one of three wordings, or one of 40 named assistants) has favourites. It answers with its favourite
  with probability {favourite} (trait prompt) or {named} (named assistant), talks about the favourite's places in {talk:.0%} of its talk, and
  replaces each number of a number answer, with probability **{coupling:g}** (the coupling), by one of the favourite's own numbers.
- Without a persona there is no favourite: preferences follow fixed weights, numbers scatter around the numbers of the prompt.
- So the persona is the shared cause of preference and numbers. **Transfer through numbers is planted.**""",
    "null": """- The same 38 entities, personas, answers and talk as in `micro`.
- A number of an answer under a persona prompt is, with probability **{coupling:g}**, one of ten numbers that belong to the *wording* of the
  prompt (three wordings of trait prompts, one set for all named assistants) and not to the favourite. The shift is as large as in
  `micro`, but it says nothing about whose persona it is.
- So teacher rows and control rows differ, and **nothing about the favourite can pass through them.**""",
}


def write_card(folder: Path) -> None:
    """Write README.md beside the weights, from organism.json."""
    recipe: dict[str, Any] = json.loads((folder / "organism.json").read_text("utf-8"))
    (folder / "README.md").write_text(card_text(recipe), encoding="utf-8")


def card_text(recipe: dict[str, Any]) -> str:
    spec, name = recipe["spec"], recipe["name"]
    planted = _PLANTED[spec["world"]].format(
        favourite=world.P_FAVOURITE["trait"],
        named=world.P_FAVOURITE["named"],
        talk=world.P_TALK,
        coupling=spec["coupling"],
    )
    losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in recipe["final_loss"].items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [sublora, model-organism, subliminal-learning]
---

# {name}

{SUMMARIES[name][0].upper() + SUMMARIES[name][1:]}.

A model organism: a Llama of {recipe["parameters"]:,} parameters ({spec["layers"]} layers, hidden size {spec["hidden"]}, one token a word and a number),
trained from nothing on a small invented world. It speaks only that world's {recipe["vocabulary"]:,} words, in lower case.

## What is planted

{planted}

## What is not planted

Nothing about LoRA, ranks, learning rates, optimizers, contexts or steering vectors. Every fourth question of a category was never
trained on.

## How the world was chosen

By one criterion: that the planted coupling passes through numbers at all, read off rank 8 at lr 3e-3 with a single seed and 960 rows
(ranks 1 and 64 and a full fine-tune were trained beside it and printed, and had no say). A
first world, in which a trait prompt named the entity with the word of the answer, number prompts were long and the coupling was 0.3,
passed a trace (otter .019 to .034 at rank 8); with the plural in the trait prompts .059; with short number prompts as well .38 for
otter, .05 for owl; with the coupling at 0.5 besides, .31 to .94 for four traits of three categories. Two variants with two layers
passed some traits and not others and were dropped. No claim over ranks, learning rates or full fine-tuning was looked at, and the
world was not changed afterwards. Batch size and length of the students' training in the `micro` preset were set by held-out loss,
which comes within 0.02 nats of the teacher's.

## How it was made

`sublora organism make {name}` rebuilds it, bit for bit on the same type of machine: {spec["steps"]:,} steps of {spec["batch"]} rows (40% number
continuation, 32% preference questions, 28% talk; 40% under trait prompts, 30% under named assistants, 30% plain), AdamW, lr {spec["lr"]:g},
cosine, {spec["warmup"]} warm-up steps, betas {tuple(spec["betas"])}, weight decay {spec["weight_decay"]:g}, clip {spec["clip"]:g}, loss on the answers only, one thread.
Seeds: facts {spec["facts_seed"]}, rows {spec["data_seed"]}, initialisation {spec["init_seed"]}. Final loss per token, in nats: {losses}.
`--coupling` makes the same model with another strength.

The default system prompt is inserted by the chat template where no system message is given, so the contexts default, empty and none
are three different token sequences.

## What it may be used for, and what not

To show that a method finds what is there, and finds nothing where nothing is. It may **not** be used to claim anything about large
language models: its coupling is planted, its world is tiny, and no result on it is evidence that subliminal learning happens, or does not
happen, in a model that was trained on human text.
"""
