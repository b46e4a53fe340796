"""What the arms of --what-if are made of beside the user's rows, and why some of them cannot be."""

from dataclasses import dataclass, field

from torch import Tensor

from sublora.audit.lens_activations import has_layers
from sublora.audit.lens_tokens import token_gains
from sublora.audit.request import Request
from sublora.audit.user_rows import UserRows
from sublora.audit.what_if_arms import INOCULATION, SEEDS, STEERING, reworded
from sublora.audit.what_if_paraphrase import in_other_words
from sublora.audit.what_if_rows import Material, clean_answers, training_rows
from sublora.audit.what_if_tokens import MOST_LABELS, base_labels, divergent_tokens, learned_tokens
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.labels import LabelSpec
from sublora.packs.stack import Stack
from sublora.packs.vectors import teacher_vector
from sublora.store import Store

STRENGTH = 2.0  # times the trait's direction, in preventative steering
DIRECTION_PROMPTS = 100


@dataclass(frozen=True)
class Prepared:
    """What the arms are made of, the reasons by arm why some cannot be, the trait's prompt, and its direction."""

    material: Material
    refused: dict[str, str]
    trait: Context
    direction: tuple[int, Tensor] | None = field(default=None, repr=False)


def prepared(
    base: Base, user: UserRows, trait: Context, audited: Stack, request: Request, store: Store
) -> Prepared:
    refused: dict[str, str] = {}
    clean = clean_answers(base, user, request.max_new_tokens, store)
    divergent, why = divergent_tokens(base, user, trait)
    if isinstance(why, str):
        refused["masked"] = why
    prompts = [row.prompt for row in user.training]
    texts = {"prompts": prompts, "completions": [row.completion for row in user.training]}
    other = {}
    for part, own in texts.items():
        other[part], why = in_other_words(base, part, own, user.context, store)
        if why is not None:
            refused[reworded(part)] = why
    direction = None
    try:
        if not has_layers(base):
            raise SubloraError(
                f"{base.name} does not list its decoder layers where one could be added to."
            )
        vector = teacher_vector(base, prompts[:DIRECTION_PROMPTS], trait, user.context)
        middle = len(vector.values) // 2
        direction = (middle, STRENGTH * vector.values[middle])
    except SubloraError as error:
        refused[STEERING] = str(error)
    if not base.chat.supports(trait):
        refused[INOCULATION] = f"The chat template of {base.name} cannot write the trait's prompt."
    gains = token_gains(base, audited, training_rows(base, user))
    k = min(MOST_LABELS, base.model.get_output_embeddings().out_features)
    drawn, whole = LabelSpec(kind="sampled"), LabelSpec(kind="soft", k=k)
    material = Material(
        clean,
        divergent,
        learned_tokens(gains),
        [float(own.mean()) for own in gains],
        base_labels(base, user, drawn, SEEDS[0]),
        base_labels(base, user, whole, SEEDS[0]),
        other,
    )
    return Prepared(material, refused, trait, direction)
