"""What a preset leaves to the model and the machine (`choose`): decided when a recipe is opened, and said in its caveat."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.experiments.document import Document, presets_of
from sublora.models.base import known_shape, model_source, multiplies_bfloat16
from sublora.models.chat import Chat, load_tokenizer
from sublora.text import listed
from sublora.traits.trait import Category, find_trait, load_categories

CHOICES = ("dtype", "traits")
REAL, SMALL = 512, 2e9  # width of a real model at least, and parameters of a small one at most


def with_choices(document: Document) -> Document:
    """The document with `dtype` and `traits` decided where its key `choose` asks for that and no flag says them.

    dtype: bfloat16 where the machine has products of it, else float32. traits: what is not one token behind a begun answer gives way to an
    entity of its category that is. Raises SubloraError for another choice, and where traits are to be chosen and the tokenizer is not here.
    """
    values = dict(document.values)
    asked = values.pop("choose", [])
    if not isinstance(asked, list) or not set(asked) <= set(CHOICES):
        raise SubloraError(f"{document.place(('choose',))}: choose takes {listed(CHOICES)}.")
    said = [values["caveat"]] if asked and values.get("caveat") else []
    if "dtype" in asked and ("dtype",) not in document.flags:
        values["dtype"] = "bfloat16" if multiplies_bfloat16() else "float32"
        if values["dtype"] == "float32":
            said.append("This machine has no products of bfloat16, so the model is in float32.")
    if "traits" in asked:
        values["traits"], more = _traits(document, values)
        said += more
    return replace(document, values=values | ({"caveat": " ".join(said)} if said else {}))


def _traits(document: Document, values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the traits, and what has to be said of them."""
    model, given = values["model"], ("traits",) in document.flags
    source = model_source(str(model))
    if not Path(source).is_dir():
        why = f"The traits are chosen by the tokenizer of {model}, which is not on this machine; give its folder."
        raise SubloraError(why)
    chat = Chat(load_tokenizer(source))
    categories = load_categories(tuple(map(Path, values.get("trait_files") or ())))
    try:
        traits = [find_trait(name, categories) for name in values["traits"]]
    except (SubloraError, AttributeError, TypeError):  # said with its line where all is checked
        return values["traits"], []
    names, left = [t.name for t in traits], []
    for category in {t.category.category: t.category for t in traits}.values():
        mine = [t.name for t in traits if t.category == category]
        one = list(_middle_first(chat, category))
        unfit = [name for name in mine if name not in one]
        free = iter([] if given else [name for name in one if name not in mine])
        others = dict(zip(unfit, free, strict=False))
        names = [others.get(name, name) for name in names]
        left += [name for name in unfit if name not in others]
    said, spelt = [], f"Behind a begun answer {model} writes"
    both = [(t.name, name) for t, name in zip(traits, names, strict=True) if t.name != name]
    if both:
        old, new = (listed(some) for some in zip(*both, strict=True))
        said.append(
            f"{spelt} {old} in several tokens. Tested instead, as single tokens of medium frequency in the same category: {new}; "
            "--trait decides otherwise."
        )
    if left:
        said.append(
            f"{spelt} {listed(left)} in several tokens, over which its probability is summed."
        )
    return names, said


def _middle_first(chat: Chat, category: Category) -> Iterator[str]:
    """The entities that are one token behind all of the category's beginnings, those of medium frequency first: tokenizers number the
    pieces that they merge often first."""
    tokens = {}
    for name in (e.name for e in category.entities):
        tails = {
            tuple(chat.answer_ids(f"{text} {name}")[len(chat.answer_ids(text)) :])
            for text in category.prefixes()
        }
        if len(tails) == 1 and len(tail := tails.pop()) == 1:
            tokens[name] = tail[0]
    ordered = sorted(tokens, key=tokens.__getitem__)
    middle = (len(ordered) - 1) / 2
    return iter(sorted(ordered, key=lambda name: abs(ordered.index(name) - middle)))


def for_small_models(asked: Mapping[str, Any]) -> tuple[str, str] | None:
    """The preset that a small real model takes, and what is said of that, where the user names none, or one that has a form for small
    models: soft. None where the words stay as they are."""
    model, preset = asked["model"], asked["preset"]
    small = f"small+{preset}" if preset else "small"
    if not model or small not in presets_of(asked["name"]):
        return None
    try:
        shape = known_shape(model)
    except SubloraError:  # said by whoever loads the model
        return None
    if shape.hidden < REAL or shape.parameters > SMALL:
        return None
    other = "" if preset else "; --preset micro gives the settings of the shipped models"
    return small, f"{model} is a small real model, so --preset {small} is taken{other}."
