"""Opens a base for packs, and checks that they read it as it reads itself: its head, its cache, and full fine-tunes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor

from sublora.errors import SubloraError
from sublora.models.base import Base, read_base
from sublora.packs import hooks
from sublora.packs.full import full_forwards
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import prefill
from sublora.packs.score import score_sequences

PROMPTS = ((1, 2, 0, 1, 2), (2, 1))  # of two lengths, so that one begins in a later column
ANSWERS = ((1, 2), (1, 0), (2, 1))  # two share their beginning


def load_base(
    name: str, *, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> Base:
    """Load a shipped model, a Hugging Face folder or a hub id, and check that packs can run it. Raises SubloraError as `read_base` does,
    for a head that is not a plain function of the last hidden state, and where rows of several lengths cannot be read together."""
    base = read_base(name, device=device, dtype=dtype, revision=revision)
    check_head(base)
    check_rows(base)
    return base


def check_head(base: Base) -> None:
    """Raises SubloraError where a pack does not give the model's own logits."""
    if not isinstance(base.model.get_output_embeddings(), torch.nn.Linear):
        why = f"The model {base.name} has no linear output head, so it is no causal language model that can be measured here."
        raise SubloraError(why)
    ids = torch.tensor([[1, 2, 0, 1]], device=base.device)
    with torch.inference_mode(), PackedModel(base.model, None) as packed:
        whole = base.model(input_ids=ids).logits[0].float()
        parts = packed.logits(packed.hidden(ids)[0]).float()
    if not _close(base, whole, parts):
        raise _unsupported(base, "its logits are not its head applied to the last hidden state")


def check_rows(base: Base) -> None:
    """Raises SubloraError where answers behind prompts of several lengths, read as one batch and one tree, are not what the model says of
    each alone."""
    with (
        torch.inference_mode(),
        _readable(base, "rows of several lengths cannot be read as one batch"),
    ):
        with PackedModel(base.model, None) as packed:
            (filled,) = prefill(packed, PROMPTS, len(PROMPTS))
            found = score_sequences(packed, filled, ANSWERS, len(PROMPTS))[0]
        alone = torch.empty_like(found)
        for place, row in enumerate(filled.rows):
            ids = torch.tensor([PROMPTS[row] + answer for answer in ANSWERS], device=base.device)
            logp = base.model(input_ids=ids).logits.double().log_softmax(-1)[:, :-1]
            logp = logp.gather(2, ids[:, 1:, None])[:, len(PROMPTS[row]) - 1 :, 0]
            alone[place] = logp.sum(1).cpu()
    if not _close(base, alone, found):
        why = "what it says of a row changes with the rows beside it, because it does not go by position numbers and masks"
        raise _unsupported(base, why)


def check_full(base: Base) -> None:
    """Raises SubloraError where a full fine-tune with the base's own weights is not the base."""
    ids = torch.tensor([[1, 2, 0, 1]], device=base.device)
    views = {name: p.unsqueeze(0) for name, p in base.model.named_parameters()}
    alone = SimpleNamespace(views=views, flat=torch.empty(1, 0))  # a group of one, without a copy
    with torch.inference_mode(), PackedModel(base.model, None) as packed:
        plain = packed.hidden(ids)
        with (
            _readable(base, "full fine-tunes of it cannot be packed"),
            hooks.forwards(full_forwards(base.model, alone)),
        ):
            full = packed.hidden(ids)
    if not _close(base, plain, full):
        raise _unsupported(
            base, "a full fine-tune with its own weights is not the model; drop train.full"
        )


def _close(base: Base, one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-3 if next(base.model.parameters()).element_size() >= 4 else 0.1
    return torch.allclose(one, other, atol=tolerance, rtol=tolerance)


@contextmanager
def _readable(base: Base, what: str) -> Iterator[None]:
    """Whatever an architecture that was not thought of raises becomes the reason why it is refused."""
    try:
        yield
    except Exception as error:
        raise _unsupported(base, f"{what} ({' '.join(str(error).split())[:160]})") from None


def _unsupported(base: Base, why: str) -> SubloraError:
    kind = type(base.model).__name__
    return SubloraError(f"The model {base.name} ({kind}) is not supported here: {why}.")
