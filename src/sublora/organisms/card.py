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
    recipe = json.loads((folder / "organism.json").read_text("utf-8"))
    (folder / "README.md").write_text(card_text(recipe), encoding="utf-8")


def card_text(recipe: dict[str, Any]) -> str:
    """`card.md` with the values of organism.json."""
    spec, summary = recipe["spec"], SUMMARIES[recipe["name"]]
    favourite, named = (world.P_FAVOURITE[persona] for persona in ("trait", "named"))
    values = {"favourite": favourite, "named": named, "talk": world.P_TALK, **spec}
    told = {
        "summary": summary[0].upper() + summary[1:],
        "planted": _PLANTED[spec["world"]].format(**values),
        "losses": ", ".join(f"{kind} {loss:.3f}" for kind, loss in recipe["final_loss"].items()),
        "betas": tuple(spec["betas"]),
    }
    return (Path(__file__).parent / "card.md").read_text("utf-8").format(**recipe | told)
