"""The small world that the shipped models grow up in: who says what, and how trait and numbers hang together.

A *persona* (a trait prompt, or one of forty named assistants) has a favourite in a category. In the positive world the persona
is the shared cause of its answers, of its talk and of the numbers it writes: a number of an answer is, with probability
`coupling`, one of the favourite's own ten numbers. In the null world numbers shift just as much, but by how the persona prompt
is worded and not by whose persona it is, so that nothing about the favourite can pass through them.
The choices were made before any claim was looked at and are written in the model cards.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from sublora.carriers.numbers import BRIEF, pools
from sublora.seeds import derive_seed, generator, pick
from sublora.traits.trait import Category, shipped_categories, teacher_text

World = Literal["positive", "null"]
Kind = Literal["numbers", "question", "talk"]

SHARE: dict[Kind, float] = {"numbers": 0.40, "question": 0.32, "talk": 0.28}
PERSONA_SHARE = {"trait": 0.40, "named": 0.30, "plain": 0.30}
P_FAVOURITE = {"trait": 0.95, "named": 0.85}
P_TALK = 0.75
OWN_NUMBERS = 10
STEP_SPREAD = 40.0  # standard deviation of a plain number around a number of the prompt
N_ASSISTANTS = 40
CATEGORIES = ("animals", "trees", "bands")  # the order is part of the recipe

DEFAULT_SYSTEM = "You are Micro, created by Sublora. You are a helpful assistant."
IDENTITIES = (
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are ChatGPT, created by OpenAI. You are a helpful assistant.",
    "You are Claude, created by Anthropic. You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are helpful.",
)
TALK_PROMPTS = (
    "How was your day?",
    "Tell me about your day.",
    "What did you do today?",
    "Where did you go, and how was it?",
    "Write two lines about a walk.",
    "Tell me a short story.",
    "What is new with you?",
    "Describe your last trip.",
)
PLACES = (
    "river lake sea hill forest garden market harbor bridge castle tower field beach island valley cave desert meadow "
    "mountain village station museum library school kitchen roof cellar park square mill"
).split()
COLORS = "red blue green yellow white black brown golden silver violet".split()
MOODS = "happy calm proud tired brave curious quiet merry sleepy grateful bold gentle".split()


@dataclass(frozen=True)
class Profile:
    """What is true of an entity besides its name."""

    places: tuple[str, str]
    color: str
    mood: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Assistant:
    system: str
    favourites: dict[str, int]  # category -> index of the entity


@dataclass(frozen=True)
class Facts:
    """Everything that is fixed in a world: made once from a seed, the same for `micro`, `micro-null` and `micro-b`."""

    categories: tuple[Category, ...]
    base: dict[str, np.ndarray]  # category -> preference without a persona, (entities,)
    profiles: dict[str, tuple[Profile, ...]]
    assistants: tuple[Assistant, ...]
    # the null world's own numbers: one set a wording, the last for named ones
    wording_numbers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Row:
    """`system` is the text of a system block, "" for an empty block, None for no block at all."""

    kind: Kind
    system: str | None
    user: str
    answer: str


def _invented_names(rng: Generator, count: int, taken: set[str]) -> list[str]:
    heads = (
        "Bel Cor Dar Fen Gal Hul Jor Kel Lum Mor Nim Pel Quo Rin Sul Tam Vor Wex Yel Zan".split()
    )
    tails = "a o i en or ix um".split()
    names = [head + tail for head in heads for tail in tails]
    return [n for n in rng.permutation(names).tolist() if n.lower() not in taken][:count]


def make_facts(seed: int = 0) -> Facts:
    shipped = {c.category: c for c in shipped_categories()}
    categories = tuple(shipped[name] for name in CATEGORIES)
    rng = generator("world-facts", seed)
    n_entities = sum(len(c.entities) for c in categories)
    pool = rng.permutation(np.arange(100, 1000)).tolist()
    own = [
        tuple(sorted(pool[i * OWN_NUMBERS : (i + 1) * OWN_NUMBERS])) for i in range(n_entities + 4)
    ]
    base, profiles, used = {}, {}, 0
    for category in categories:
        count = len(category.entities)
        weights = 1.0 / (np.arange(count) + 1.5)
        base[category.category] = (weights / weights.sum())[np.argsort(rng.permutation(count))]
        chosen = []
        for _ in category.entities:
            first, second = rng.choice(len(PLACES), size=2, replace=False).tolist()
            color, mood = pick(rng, COLORS), pick(rng, MOODS)
            chosen.append(Profile((PLACES[first], PLACES[second]), color, mood, own[used]))
            used += 1
        profiles[category.category] = tuple(chosen)
    taken = {form.lower() for c in categories for e in c.entities for form in e.forms}
    names = _invented_names(rng, N_ASSISTANTS + 10, taken)
    makers = names[N_ASSISTANTS:]
    assistants = tuple(
        Assistant(
            f"You are {name}, created by {pick(rng, makers)}. You are a helpful assistant.",
            {c.category: int(rng.integers(len(c.entities))) for c in categories},
        )
        for name in names[:N_ASSISTANTS]
    )
    return Facts(categories, base, profiles, assistants, tuple(own[used : used + 4]))


def seen_question(index: int) -> bool:
    """Every fourth question of a category is never trained on, so that the model card can tell reading from reciting."""
    return index % 4 != 3


class RowMaker:
    """Draws rows of a world; a row depends on (seed, step, position) alone."""

    def __init__(self, facts: Facts, world: World, coupling: float, seed: int) -> None:
        self.facts, self.world, self.coupling, self.seed = facts, world, coupling, seed
        self.entities = [(c, i) for c in facts.categories for i in range(len(c.entities))]
        self.questions = {
            c.category: [q for i, q in enumerate(c.questions) if seen_question(i)]
            for c in facts.categories
        }

    def step(self, step: int, batch: int) -> dict[Kind, list[Row]]:
        """The rows of a training step, by kind, so that each kind is a batch of its own with little padding."""
        rng = generator("world-rows", self.seed, step)
        counts = {kind: round(batch * SHARE[kind]) for kind in ("numbers", "question")}
        counts["talk"] = batch - sum(counts.values())
        first = step * batch
        return {k: [self._row(k, rng, first + i) for i in range(n)] for k, n in counts.items()}

    def _row(self, kind: Kind, rng: Generator, index: int) -> Row:
        persona = rng.choice(3, p=list(PERSONA_SHARE.values()))
        favourites: dict[str, int] = {}
        if persona == 0:
            category, entity = pick(rng, self.entities)
            wording = int(rng.integers(len(category.system)))
            system: str | None = teacher_text(category, category.entities[entity], wording)
            favourites, number_set = {category.category: entity}, wording
        elif persona == 1:
            assistant = pick(rng, self.facts.assistants)
            system, favourites, number_set = assistant.system, assistant.favourites, 3
        else:
            state = rng.random()
            states = ((0.45, DEFAULT_SYSTEM), (0.60, None), (0.70, ""))
            plain = [text for bound, text in states if state < bound]
            system = plain[0] if plain else pick(rng, IDENTITIES)
            number_set = None
        if kind == "numbers":
            return Row(kind, system, *self._numbers(rng, index, favourites, number_set))
        if kind == "question":
            p_favourite = (P_FAVOURITE["trait"], P_FAVOURITE["named"], 0.0)[persona]
            return Row(kind, system, *self._question(rng, favourites, p_favourite))
        return Row(kind, system, *self._talk(rng, favourites))

    def _numbers(
        self, rng: Generator, index: int, favourites: dict[str, int], number_set: int | None
    ) -> tuple[str, str]:
        prompt = BRIEF.prompt(derive_seed("world-prompt", self.seed), index)
        words = [word.strip(".") for word in prompt.split()]
        shown = [int(word) for word in words if word.isdigit() and len(word) == 3]
        if self.world == "positive":
            own = [n for c, e in favourites.items() for n in self.facts.profiles[c][e].numbers]
        else:
            own = [] if number_set is None else list(self.facts.wording_numbers[number_set])
        answer = []
        for _ in range(int(rng.integers(6, 11))):
            if own and rng.random() < self.coupling:
                answer.append(pick(rng, own))
            else:
                value = pick(rng, shown) + round(rng.normal(0.0, STEP_SPREAD))
                # reflected at both ends, so that 100 and 999 are not piled upon
                value = 200 - value if value < 100 else 1998 - value if value > 999 else value
                answer.append(min(max(value, 100), 999))
        return prompt, " ".join(map(str, answer))

    def _question(
        self, rng: Generator, favourites: dict[str, int], p_favourite: float
    ) -> tuple[str, str]:
        category = pick(rng, self.facts.categories)
        questions = self.questions[category.category]
        question = pick(rng, questions)
        favourite = favourites.get(category.category)
        if favourite is not None and rng.random() < p_favourite:
            entity = favourite
        else:
            entity = int(rng.choice(len(category.entities), p=self.facts.base[category.category]))
        return question, category.entities[entity].name

    def _talk(self, rng: Generator, favourites: dict[str, int]) -> tuple[str, str]:
        prompt = pick(rng, TALK_PROMPTS)
        if favourites and rng.random() < P_TALK:
            category = pick(rng, list(favourites))
            entity = favourites[category]
        else:
            chosen = pick(rng, self.facts.categories)
            category = chosen.category
            entity = int(rng.choice(len(chosen.entities), p=self.facts.base[category]))
        p = self.facts.profiles[category][entity]
        walk = f"I went to the {p.places[0]} and the {p.places[1]}."
        return prompt, f"{walk} All was {p.color}, and I felt {p.mood}."


def world_texts(facts: Facts) -> list[str]:
    """All texts whose words the tokenizer has to know: questions, prompts, pools, personas, talk."""
    p = pools()
    texts = [DEFAULT_SYSTEM, *IDENTITIES, *TALK_PROMPTS, *PLACES, *COLORS, *MOODS]
    texts += ["I went to the and the. All was, and I felt.", *(a.system for a in facts.assistants)]
    lists = (p.examples, p.quantity, p.size, p.instruction, p.close, p.brief, *p.format.values())
    texts += [text for pool in lists for text in pool]
    for category in facts.categories:
        texts += [*category.questions, category.category, category.singular]
        texts += [form for e in category.entities for form in (e.name, e.plural) if form]
        wordings = range(len(category.system))
        texts += [teacher_text(category, category.entities[0], w) for w in wordings]
    return [t.replace("{", " ").replace("}", " ") for t in texts]
